//! Everything that the controller knows of its namespace, as one whole value.
//!
//! It is filled by watches (see [`crate::watch`]) or by a test; [`crate::plan`] reads it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use martlet_api::Objects;
use martlet_api::crd::RouterState;
use martlet_api::view::ObjectName;
use serde_json::Value;

use crate::gateway::Status;

/// What the controller may do besides what the seed lists (the Role `base`). Each missing right costs one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a right of its own")]
pub struct Rights {
    /// To write the status of an `L34Route`.
    pub route_status: bool,
    /// To read `GatewayRouter`s and write their status.
    pub routers: bool,
    /// To read `RouterState`s.
    pub states: bool,
    /// To write the status of Pods: readiness gates.
    pub gates: bool,
    /// To read ConfigMaps: the operator's templates.
    pub config_maps: bool,
    /// To write PodDisruptionBudgets.
    pub budgets: bool,
    /// To read GatewayClasses and write their status.
    pub classes: bool,
    /// To write Events.
    pub events: bool,
    /// To hold a Lease: several replicas.
    pub leases: bool,
}

impl Rights {
    /// All of them.
    pub const ALL: Self = Self {
        route_status: true,
        routers: true,
        states: true,
        gates: true,
        config_maps: true,
        budgets: true,
        classes: true,
        events: true,
        leases: true,
    };
    /// None: the Role `base` alone.
    pub const BASE: Self = Self {
        route_status: false,
        routers: false,
        states: false,
        gates: false,
        config_maps: false,
        budgets: false,
        classes: false,
        events: false,
        leases: false,
    };
}

/// What we read of a Gateway besides what acceptance reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayExtra {
    /// What its status says now.
    pub status: Status,
    /// The names of its listeners.
    pub listeners: Vec<String>,
}

impl GatewayExtra {
    /// Of a Gateway as the server has it. What cannot be read of its status counts as not there, and is written anew.
    pub fn read(gateway: &Value) -> Self {
        let status: Status = serde_json::from_value(gateway["status"].clone()).unwrap_or_default();
        let listeners = gateway["spec"]["listeners"].as_array().into_iter().flatten();
        Self {
            status: status.ours(),
            listeners: listeners.filter_map(|l| l["name"].as_str().map(str::to_owned)).collect(),
        }
    }
}

/// Everything that is known. Maps by name are of [`Self::namespace`] only.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// The namespace of the controller.
    pub namespace: Arc<str>,
    /// What acceptance reads.
    pub objects: Objects,
    /// The rest of the Gateways.
    pub gateways: BTreeMap<ObjectName, GatewayExtra>,
    /// Pods.
    pub pods: BTreeMap<String, Arc<Pod>>,
    /// Deployments.
    pub deployments: BTreeMap<String, Arc<Deployment>>,
    /// Budgets.
    pub budgets: BTreeMap<String, Arc<PodDisruptionBudget>>,
    /// Templates of operators.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// What the routers of the load-balancer pods see.
    pub states: BTreeMap<String, Arc<RouterState>>,
    /// What the controller may do.
    pub rights: Rights,
}

impl World {
    /// Nothing is known yet.
    pub fn new(namespace: &str, rights: Rights) -> Self {
        Self {
            namespace: Arc::from(namespace),
            objects: Objects::default(),
            gateways: BTreeMap::new(),
            pods: BTreeMap::new(),
            deployments: BTreeMap::new(),
            budgets: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            states: BTreeMap::new(),
            rights,
        }
    }

    /// An object of our namespace by its name.
    pub fn name(&self, name: &str) -> ObjectName {
        ObjectName { namespace: self.namespace.clone(), name: Arc::from(name) }
    }
}
