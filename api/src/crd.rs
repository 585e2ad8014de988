//! The objects as they are written: our custom resources, and the few fields that we read of the Gateway API.
//!
//! Numbers are `i64` and durations are text on purpose: a value out of range reaches our own parsers
//! ([`crate::parse`]), which say what would be accepted. The rules that an API server applies are derived from here into
//! `deploy/crds/`; they use only what Kubernetes 1.28 has.

use kube::CustomResourceExt as _;

mod gateway;
mod route;
mod router;
mod rules;
mod state;

pub use gateway::{
    Gateway, GatewayAddress, GatewayClass, GatewayClassSpec, GatewayInfrastructure, GatewaySpec, GatewayStatus,
    ParametersReference,
};
pub use route::{
    BackendReference, L34Route, L34RouteSpec, L34RouteStatus, ParentReference, ParentStatus, PortTranslation, Protocol,
};
pub use router::{
    BfdAuthentication, BfdAuthenticationType, BfdSpec, BgpSpec, Family, GatewayRouter, GatewayRouterSpec,
    GatewayRouterStatus, GracefulRestart, Import, ImportPrefix, KeyReference, MaximumPrefixes, Multihop, PodSession,
    Role, RoutingProtocol, Shutdown, StaticSpec, TcpAuthentication, TcpAuthenticationAlgorithm,
};
pub use state::{RouterState, RouterStateSpec, SessionState, VipState};

/// The group of our custom resources.
pub const GROUP: &str = "meridio.experiment.gateway.api.poc";
/// Their version.
pub const VERSION: &str = "v1alpha1";
/// Our `controllerName`, which is accepted as a class name too.
pub const CONTROLLER: &str = "meridio-experiment/stateless-load-balancer";
/// The label that says to which Gateway a `GatewayRouter` or a Service belongs.
pub const GATEWAY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label that says to which Service an `EndpointSlice` belongs.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label that says who made an `EndpointSlice`.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Networks attached to the pods of a Gateway (Multus).
pub const POD_NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";
/// Networks towards the pods that Services select.
pub const NETWORKS_ANNOTATION: &str = "meridio-experiment/networks";
/// Networks that the addresses of endpoints must lie in.
pub const SUBNETS_ANNOTATION: &str = "meridio-experiment/network-subnets";
/// How many endpoints a Service may have.
pub const MAX_ENDPOINTS_ANNOTATION: &str = "meridio-experiment/service-max-endpoints";

/// Our custom resource definitions, each with its file name in `deploy/crds/`.
pub fn definitions()
-> [(&'static str, k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition); 3] {
    [
        ("gatewayrouters.yaml", GatewayRouter::crd()),
        ("l34routes.yaml", L34Route::crd()),
        ("routerstates.yaml", RouterState::crd()),
    ]
}

/// The schema of Kubernetes' own `Condition`.
fn conditions(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "message": { "type": "string", "maxLength": 32768 },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "reason": { "type": "string", "maxLength": 1024, "minLength": 1 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "type": { "type": "string", "maxLength": 316 }
            }
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"]
    })
}
