//! `GatewayRouter`: a router outside of the cluster, and how it is reached.
#![expect(clippy::duplicated_attributes, reason = "a column or category of a kube resource is an attribute of its own")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// A router outside, and how it is reached.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "meridio.experiment.gateway.api.poc",
    version = "v1alpha1",
    kind = "GatewayRouter",
    plural = "gatewayrouters",
    namespaced,
    status = "GatewayRouterStatus",
    derive = "PartialEq",
    doc = "A router outside of the cluster and how it is reached. Its Gateway is named by the label service.kubernetes.io/service-proxy-name.",
    shortname = "gwr",
    category = "martlet",
    category = "gateway-api",
    printcolumn(
        name = "Gateway",
        type_ = "string",
        json_path = ".metadata.labels.service\\.kubernetes\\.io/service-proxy-name"
    ),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Interface", type_ = "string", json_path = ".spec.interface"),
    printcolumn(name = "BGP", type_ = "string", json_path = ".status.bgp"),
    printcolumn(name = "BFD", type_ = "string", json_path = ".status.bfd"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "Last Error", type_ = "string", priority = 1, json_path = ".status.lastError"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.bgp) && has(self.static))").message("bgp and static exclude each other"),
    validation = Rule::new("!has(self.protocol) || self.protocol != 'BGP' || !has(self.static)")
        .message("protocol BGP has no static"),
    validation = Rule::new("!has(self.protocol) || self.protocol != 'Static' || !has(self.bgp)")
        .message("protocol Static has no bgp"),
    validation = Rule::new(
        "!has(self.bgp) || !has(self.bgp.sourceAddress) || self.bgp.sourceAddress.contains(':') == self.address.contains(':')"
    ).message("bgp.sourceAddress must be of the family of address")
)]
pub struct GatewayRouterSpec {
    /// Its address, IPv4 or IPv6.
    #[schemars(length(max = 45))]
    #[x_kube(validation = rules::address())]
    pub address: String,
    /// Our interface towards it; omitted: the external interface of the load-balancer pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    #[x_kube(validation = rules::interface())]
    pub interface: Option<String>,
    /// For a human.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub description: Option<String>,
    /// BGP, or Static; omitted: BGP, or Static where only `static` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<RoutingProtocol>,
    /// It is a BGP neighbour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpSpec>,
    /// It is a static next hop.
    #[serde(rename = "static", default, skip_serializing_if = "Option::is_none")]
    pub static_: Option<StaticSpec>,
}

/// How a router is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RoutingProtocol {
    /// By BGP.
    #[serde(rename = "BGP")]
    Bgp,
    /// By a static default route.
    Static,
}

/// A BGP neighbour. What is omitted takes the default of the load-balancer pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.ttlSecurity) && self.ttlSecurity && has(self.multihop))")
        .message("ttlSecurity and multihop exclude each other"),
    validation = Rule::new("!(has(self.auth) && has(self.tcpAo))").message("auth and tcpAo exclude each other")
)]
pub struct BgpSpec {
    /// Our AS number.
    #[serde(rename = "localASN", default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::asn())]
    pub local_asn: Option<i64>,
    /// Its AS number.
    #[serde(rename = "remoteASN", default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::asn())]
    pub remote_asn: Option<i64>,
    /// 0s, or 3s to 65535s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::hold_time())]
    pub hold_time: Option<String>,
    /// The port that we listen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub local_port: Option<i64>,
    /// The port that we connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub remote_port: Option<i64>,
    /// Supervision by BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<BfdSpec>,
    /// TCP MD5 (RFC 2385).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<KeyReference>,
    /// TCP authentication option (RFC 5925).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_ao: Option<TcpAuthentication>,
    /// Only wait for the neighbour's connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<bool>,
    /// The neighbour is not on our link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multihop: Option<Multihop>,
    /// GTSM (RFC 5082): both sides send TTL 255, and less is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<bool>,
    /// Our address; of the family of `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    #[x_kube(validation = rules::address())]
    pub source_address: Option<String>,
    /// Between two attempts while the path is silent: 10ms to 65535s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::between("10ms", "65535s"))]
    pub connect_retry: Option<String>,
    /// What the session carries; omitted: the family of `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2))]
    pub families: Option<Vec<Family>>,
    /// Put on what we announce: `65000:100`, or by name such as `no-export`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 24)))]
    #[x_kube(validation = rules::communities())]
    pub communities: Option<Vec<String>>,
    /// Put on what we announce: `4248829953:1:2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 32)))]
    #[x_kube(validation = rules::large_communities())]
    pub large_communities: Option<Vec<String>>,
    /// `MULTI_EXIT_DISC` of what we announce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295_i64))]
    pub med: Option<i64>,
    /// `LOCAL_PREF` of what we announce (iBGP only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295_i64))]
    pub local_preference: Option<i64>,
    /// How many more times our AS number stands in the path of what we announce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 32))]
    pub prepend: Option<i64>,
    /// What we accept; omitted: any prefix but our VIPs, AS loops and martians.
    #[serde(rename = "import", default, skip_serializing_if = "Option::is_none")]
    pub import: Option<Import>,
    /// How many prefixes we take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_prefixes: Option<MaximumPrefixes>,
    /// Restarting role of graceful restart (RFC 4724); omitted: helper only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
    /// Longest time that routes of this gateway are kept as a last resort once its restart time is over (RFC 9494):
    /// 1s to 16777215s; omitted: they go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::between("1s", "16777215s"))]
    pub long_lived_stale_time: Option<String>,
    /// The gateway may tell several paths to a prefix (RFC 7911).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_path_receive: Option<bool>,
    /// A malformed IPv4 or IPv6 announcement ends its family, not the session, where the session carries both (RFC 7606).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_family_on_error: Option<bool>,
    /// Our role (RFC 9234).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Administrative shutdown (RFC 9003).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<Shutdown>,
}

/// A static next hop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StaticSpec {
    /// Supervision by BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<BfdSpec>,
}

/// A BFD session.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.unaffiliated) || !self.unaffiliated || has(self.echo)")
        .message("unaffiliated needs echo"),
)]
pub struct BfdSpec {
    /// On, or off (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<bool>,
    /// Least interval at which we send; 300ms if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::interval())]
    pub min_tx: Option<String>,
    /// Least interval at which we can receive; 300ms if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::interval())]
    pub min_rx: Option<String>,
    /// How many missing packets take the session down; 5 if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub multiplier: Option<i64>,
    /// BGP waits for BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// Echo interval; omitted: no echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::interval())]
    pub echo: Option<String>,
    /// Shortest interval at which the neighbour may echo by way of us, whose kernel must forward; omitted: it may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::interval())]
    pub echo_receive: Option<String>,
    /// The neighbour knows no BFD, it only forwards our echo packets back (RFC 9747); needs echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unaffiliated: Option<bool>,
    /// The neighbour is not on our link (RFC 5883).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multihop: Option<Multihop>,
    /// Authentication (RFC 5880, section 6.7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<BfdAuthentication>,
}

/// Authentication of BFD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BfdAuthentication {
    /// How.
    #[serde(rename = "type")]
    pub type_: BfdAuthenticationType,
    /// The number of the key.
    #[serde(rename = "keyID")]
    #[schemars(range(min = 0, max = 255))]
    pub key_id: i64,
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key_source: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key_name: String,
    /// More keys that are accepted: how a key is changed without a packet lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub accept: Option<Vec<BfdKey>>,
}

/// A key of BFD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names of the object's fields, as in `auth` of the seed")]
pub struct BfdKey {
    /// The number of the key.
    #[serde(rename = "keyID")]
    #[schemars(range(min = 0, max = 255))]
    pub key_id: i64,
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key_source: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key_name: String,
}

/// A kind of authentication of BFD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BfdAuthenticationType {
    /// The key itself: no protection.
    SimplePassword,
    /// MD5.
    #[serde(rename = "KeyedMD5")]
    KeyedMd5,
    /// MD5, a new sequence number each packet.
    #[serde(rename = "MeticulousKeyedMD5")]
    MeticulousKeyedMd5,
    /// SHA1.
    #[serde(rename = "KeyedSHA1")]
    KeyedSha1,
    /// SHA1, a new sequence number each packet.
    #[serde(rename = "MeticulousKeyedSHA1")]
    MeticulousKeyedSha1,
}

/// A key in a Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyReference {
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key_name: String,
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key_source: String,
}

/// The TCP authentication option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpAuthentication {
    /// The key id that we send.
    #[serde(rename = "sendID")]
    #[schemars(range(min = 0, max = 255))]
    pub send_id: i64,
    /// The key id that the neighbour sends.
    #[serde(rename = "receiveID")]
    #[schemars(range(min = 0, max = 255))]
    pub receive_id: i64,
    /// HMAC-SHA-1-96, the default, or AES-128-CMAC-96.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<TcpAuthenticationAlgorithm>,
    /// The key in the Secret's data.
    #[schemars(length(min = 1, max = 253))]
    pub key_name: String,
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key_source: String,
}

/// An algorithm of RFC 5926.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TcpAuthenticationAlgorithm {
    /// HMAC-SHA-1-96.
    #[serde(rename = "HMAC-SHA-1-96")]
    HmacSha1,
    /// AES-128-CMAC-96.
    #[serde(rename = "AES-128-CMAC-96")]
    AesCmac,
}

/// A neighbour that is not on our link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Multihop {
    /// BGP: the TTL that we send. BFD, which sends 255: how many hops there may be; what made more is discarded, and from 64
    /// on nothing is (not every sender begins with 255). 64 if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub ttl: Option<i64>,
}

/// A family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    Ipv4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    Ipv6,
}

/// What we accept.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.defaultOnly) && self.defaultOnly) != has(self.prefixes)")
    .message("must be either defaultOnly: true or prefixes"))]
pub struct Import {
    /// The default route only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_only: Option<bool>,
    /// What lies in these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub prefixes: Option<Vec<ImportPrefix>>,
}

/// A prefix, and bounds on the length of what lies in it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.minLength) || !has(self.maxLength) || self.minLength <= self.maxLength")
    .message("minLength must not be above maxLength"))]
pub struct ImportPrefix {
    /// The prefix.
    #[schemars(length(max = 49))]
    #[x_kube(validation = rules::prefix())]
    pub prefix: String,
    /// The least length; omitted: that of the prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub min_length: Option<i64>,
    /// The greatest length; omitted: that of a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub max_length: Option<i64>,
}

/// How many prefixes we take.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MaximumPrefixes {
    /// More end the session.
    #[schemars(range(min = 1, max = 4_294_967_295_i64))]
    pub limit: i64,
    /// From how many percent on there is a warning; 75 if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub warning_percent: Option<i64>,
    /// When the session is tried again; omitted: not by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::between("1s", "24h"))]
    pub restart_after: Option<String>,
}

/// Graceful restart.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestart {
    /// How long the neighbour shall wait for us: 1s to 4095s.
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::seconds_between("1s", "4095s"))]
    pub restart_time: String,
}

/// A role of RFC 9234.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// We are its provider.
    Provider,
    /// We are a route server.
    Rs,
    /// We are a client of a route server.
    RsClient,
    /// We are its customer.
    Customer,
    /// We are peers.
    Peer,
}

/// Administrative shutdown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shutdown {
    /// Shut down, or not.
    pub switch: bool,
    /// What the neighbour is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub message: Option<String>,
}

/// What became of a `GatewayRouter`, gathered by the controller from all pods of the Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRouterStatus {
    /// Accepted, Programmed, `ResolvedRefs`.
    #[serde(default)]
    #[schemars(schema_with = "super::conditions")]
    pub conditions: Vec<Condition>,
    /// Such as `2/2 Established`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<String>,
    /// Such as `2/2 Up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<String>,
    /// The last change, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The last error of any pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// By pod.
    #[serde(default)]
    pub pods: Vec<PodSession>,
}

/// The session of one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSession {
    /// The pod.
    pub pod: String,
    /// See `RouterState`.
    pub state: String,
    /// See `RouterState`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<String>,
    /// Since when, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}
