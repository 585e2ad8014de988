//! `RouterState`: what the router of one pod sees. The router writes it, the controller gathers it, nobody else needs it.
#![expect(clippy::duplicated_attributes, reason = "a column or category of a kube resource is an attribute of its own")]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the router of one pod sees.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "meridio.experiment.gateway.api.poc",
    version = "v1alpha1",
    kind = "RouterState",
    namespaced,
    derive = "PartialEq",
    doc = "What the router of one load-balancer pod sees: its sessions, and what it announces. Written by that router.",
    shortname = "rst",
    category = "martlet",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway"),
    printcolumn(name = "IPv4", type_ = "boolean", json_path = ".spec.ipv4Connectivity"),
    printcolumn(name = "IPv6", type_ = "boolean", json_path = ".spec.ipv6Connectivity"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RouterStateSpec {
    /// The Gateway, in the namespace of this object.
    pub gateway: String,
    /// The pod.
    pub pod: String,
    /// At least one IPv4 gateway router is up and has told its routes.
    #[serde(rename = "ipv4Connectivity")]
    pub ipv4_connectivity: bool,
    /// At least one IPv6 gateway router is up and has told its routes.
    #[serde(rename = "ipv6Connectivity")]
    pub ipv6_connectivity: bool,
    /// By name of the `GatewayRouter`.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["router"]))]
    pub sessions: Vec<SessionState>,
    /// By VIP.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["vip"]))]
    pub vips: Vec<VipState>,
}

/// What became of a `GatewayRouter` in this pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionState {
    /// The `GatewayRouter`.
    pub router: String,
    /// It can be used: BGP is Established, or the static next hop is alive.
    pub up: bool,
    /// The BGP state in the words of RFC 4271, `Static`, or `NotTried`.
    pub state: String,
    /// The BFD state in the words of RFC 5880, if BFD is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<String>,
    /// Since when, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The last error, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What became of a VIP in this pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VipState {
    /// The VIP, an address.
    pub vip: String,
    /// To at least one gateway router.
    pub announced: bool,
    /// If not: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
