//! `L34Route`: which packets of a Gateway go to which Service.
#![expect(clippy::duplicated_attributes, reason = "a column or category of a kube resource is an attribute of its own")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// Packets that match all of it go to the backend of the route with the highest priority.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "meridio.experiment.gateway.api.poc",
    version = "v1alpha1",
    kind = "L34Route",
    plural = "l34routes",
    namespaced,
    status = "L34RouteStatus",
    derive = "PartialEq",
    doc = "Classifies packets to the VIPs of a Gateway by addresses, ports and protocols, and sends them to a Service.",
    shortname = "l34",
    category = "martlet",
    category = "gateway-api",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.parentRefs[0].name"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.backendRefs[0].name"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "VIPs", type_ = "string", json_path = ".spec.destinationCIDRs"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.parents[0].conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::byte_matches_of_the_route(),
    validation = Rule::new("!has(self.sctpInUdpPort) || 'SCTP' in self.protocols")
        .message("sctpInUdpPort needs SCTP in protocols")
)]
pub struct L34RouteSpec {
    /// The Gateway: exactly one, in the namespace of the route.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("size(self) == 1").message("must name exactly one Gateway"))]
    pub parent_refs: Vec<ParentReference>,
    /// The Service: exactly one, in the namespace of the route. Its port is ignored.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("size(self) == 1").message("must name exactly one Service"))]
    pub backend_refs: Vec<BackendReference>,
    /// The highest wins. Of equal ones the first by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2_147_483_648_i64, max = 2_147_483_647_i64))]
    pub priority: Option<i64>,
    /// The VIPs: /32 for IPv4, /128 for IPv6.
    #[serde(rename = "destinationCIDRs")]
    #[schemars(length(min = 1, max = 1024), inner(length(max = 49)))]
    #[x_kube(validation = rules::host_prefixes())]
    pub destination_cidrs: Vec<String>,
    /// Where packets come from; omitted: anywhere. A prefix matches its own family only.
    #[serde(rename = "sourceCIDRs", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(max = 49)))]
    #[x_kube(validation = rules::prefixes())]
    pub source_cidrs: Option<Vec<String>>,
    /// Ports, ranges such as `1000-2000`, or `any`; omitted: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(max = 11)))]
    #[x_kube(validation = rules::ports())]
    pub source_ports: Option<Vec<String>>,
    /// Ports, ranges such as `1000-2000`, or `any`; omitted: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(max = 11)))]
    #[x_kube(validation = rules::ports())]
    pub destination_ports: Option<Vec<String>>,
    /// TCP, UDP, SCTP.
    #[schemars(length(min = 1, max = 3))]
    pub protocols: Vec<Protocol>,
    /// Bytes of the transport header, or of what follows it: `tcp[0:2] & 0xff00 = 0x1200`. All must match: a packet of another
    /// protocol does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    #[x_kube(validation = rules::byte_matches())]
    pub byte_matches: Option<Vec<String>>,
    /// Ports of the VIP that are other ports at the endpoint. Stateless, both directions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port", "protocol"])
    )]
    pub destination_port_translation: Option<Vec<PortTranslation>>,
    /// SCTP in UDP (RFC 6951): UDP packets to this port are taken for the SCTP packet in them; `protocols` must hold SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub sctp_in_udp_port: Option<i64>,
}

/// A Gateway. As in the Gateway API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// `gateway.networking.k8s.io`, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Gateway`, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The namespace of the route, the default; no other is permitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

/// A Service. As in the Gateway API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendReference {
    /// The core group, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Service`, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The namespace of the route, the default; no other is permitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i64>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the VIP that is another port at the endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortTranslation {
    /// Of the VIP.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i64,
    /// Of both.
    pub protocol: Protocol,
    /// Of the endpoint.
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: i64,
}

/// What became of a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L34RouteStatus {
    /// By Gateway.
    #[serde(default)]
    pub parents: Vec<ParentStatus>,
}

/// What became of a route at a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The Gateway.
    pub parent_ref: ParentReference,
    /// Who says so.
    pub controller_name: String,
    /// Accepted, `ResolvedRefs`.
    #[serde(default)]
    #[schemars(schema_with = "super::conditions")]
    pub conditions: Vec<Condition>,
}
