//! Everything that the controller knows of its namespace, as one whole value.
//!
//! It is filled by watches (see [`crate::watch`]) or by a test; [`crate::plan`] reads it. An object that cannot be read counts as it
//! last could, and a condition says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use martlet_api::Objects;
use martlet_api::accept::ACCEPTED;
use martlet_api::crd::{GROUP, RouterState, VERSION};
use martlet_api::view::{Condition, ObjectName};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::gateway::Status;
use crate::notes::{self, Note};

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
    /// To read `ConfigMap`s: the operator's templates.
    pub config_maps: bool,
    /// To write `PodDisruptionBudget`s.
    pub budgets: bool,
    /// To read `GatewayClass`es and write their status.
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

/// A kind of object that the controller reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of the Gateway API.
    Gateway,
    /// Of the Gateway API, without a namespace.
    GatewayClass,
    /// Ours.
    GatewayRouter,
    /// Ours.
    L34Route,
    /// Ours.
    RouterState,
    /// Of the core group.
    Service,
    /// Of the core group.
    Pod,
    /// Of the core group.
    ConfigMap,
    /// `EndpointSlice`.
    Slice,
    /// Of apps.
    Deployment,
    /// `PodDisruptionBudget`.
    Budget,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Gateway,
        Self::GatewayClass,
        Self::GatewayRouter,
        Self::L34Route,
        Self::RouterState,
        Self::Service,
        Self::Pod,
        Self::ConfigMap,
        Self::Slice,
        Self::Deployment,
        Self::Budget,
    ];

    /// As it stands in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::GatewayClass => "GatewayClass",
            Self::GatewayRouter => "GatewayRouter",
            Self::L34Route => "L34Route",
            Self::RouterState => "RouterState",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::ConfigMap => "ConfigMap",
            Self::Slice => "EndpointSlice",
            Self::Deployment => "Deployment",
            Self::Budget => "PodDisruptionBudget",
        }
    }

    /// Group, version, and the name in a path.
    pub const fn api(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Gateway => ("gateway.networking.k8s.io", "v1", "gateways"),
            Self::GatewayClass => ("gateway.networking.k8s.io", "v1", "gatewayclasses"),
            Self::GatewayRouter => (GROUP, VERSION, "gatewayrouters"),
            Self::L34Route => (GROUP, VERSION, "l34routes"),
            Self::RouterState => (GROUP, VERSION, "routerstates"),
            Self::Service => ("", "v1", "services"),
            Self::Pod => ("", "v1", "pods"),
            Self::ConfigMap => ("", "v1", "configmaps"),
            Self::Slice => ("discovery.k8s.io", "v1", "endpointslices"),
            Self::Deployment => ("apps", "v1", "deployments"),
            Self::Budget => ("policy", "v1", "poddisruptionbudgets"),
        }
    }

    /// Whether `rights` include to read it; what the seed lists is always read.
    pub const fn is_read(self, rights: &Rights) -> bool {
        match self {
            Self::GatewayClass => rights.classes,
            Self::GatewayRouter => rights.routers,
            Self::RouterState => rights.states,
            Self::ConfigMap => rights.config_maps,
            Self::Budget => rights.budgets,
            _ => true,
        }
    }
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

    /// Whether it is known so already, or newer: a watch tells what the server has answered to us before.
    pub fn knows(&self, kind: Kind, object: &Value) -> bool {
        let key = ObjectName::new(text(object, "namespace"), text(object, "name"));
        self.version(kind, &key).zip(number(object)).is_some_and(|(known, version)| version <= known)
    }

    /// Takes an object as the server has it, unless it is known so or newer. Returns what is to be told of it.
    pub fn put(&mut self, kind: Kind, object: &Value) -> Vec<Note> {
        if self.knows(kind, object) {
            return Vec::new();
        }
        let name = text(object, "name");
        let key = ObjectName::new(text(object, "namespace"), name);
        let mut notes = Vec::new();
        let read = match kind {
            Kind::Gateway => {
                self.gateways.insert(key.clone(), GatewayExtra::read(object));
                keep(&mut self.objects.gateways, key.clone(), object)
            }
            Kind::GatewayClass => {
                self.gateways.insert(key.clone(), GatewayExtra::read(object));
                keep(&mut self.objects.gateway_classes, key.clone(), object)
            }
            Kind::GatewayRouter => keep(&mut self.objects.routers, key.clone(), object),
            Kind::L34Route => keep(&mut self.objects.routes, key.clone(), object),
            Kind::Service => keep(&mut self.objects.services, key.clone(), object),
            Kind::Slice => keep(&mut self.objects.slices, key.clone(), object),
            Kind::Pod => keep(&mut self.pods, name.to_owned(), object),
            Kind::Deployment => keep(&mut self.deployments, name.to_owned(), object),
            Kind::Budget => keep(&mut self.budgets, name.to_owned(), object),
            Kind::ConfigMap => keep(&mut self.config_maps, name.to_owned(), object),
            Kind::RouterState => {
                let before = self.states.get(name).cloned();
                let read = keep(&mut self.states, name.to_owned(), object);
                if let Some(after) = self.states.get(name) {
                    notes = notes::of_states(before.as_deref(), after);
                    for note in &mut notes {
                        self.identify(&mut note.regarding);
                    }
                }
                read
            }
        };
        self.objects.conditions.retain(|told| told.object != key || *told.kind != *kind.name());
        if let Err(error) = read {
            self.objects.conditions.insert(Condition {
                kind: Arc::from(kind.name()),
                object: key,
                condition: Arc::from(ACCEPTED),
                status: false,
                reason: Arc::from("Unreadable"),
                message: Arc::from(format!("{error}; what was last read stays in use")),
            });
        }
        notes
    }

    /// Adds the uid of what is referred to by name: whoever looks at an object finds its Events by that.
    fn identify(&self, reference: &mut ObjectReference) {
        let key = self.name(reference.name.as_deref().unwrap_or_default());
        reference.uid = match reference.kind.as_deref() {
            Some("Gateway") => self.objects.gateways.get(&key).and_then(|gateway| gateway.metadata.uid.clone()),
            Some("GatewayRouter") => self.objects.routers.get(&key).and_then(|router| router.metadata.uid.clone()),
            _ => None,
        };
    }

    /// An object is gone.
    pub fn gone(&mut self, kind: Kind, namespace: &str, name: &str) {
        let key = ObjectName::new(namespace, name);
        self.objects.conditions.retain(|told| told.object != key || *told.kind != *kind.name());
        match kind {
            Kind::Gateway => {
                self.gateways.remove(&key);
                self.objects.gateways.remove(&key);
            }
            Kind::GatewayClass => {
                self.gateways.remove(&key);
                self.objects.gateway_classes.remove(&key);
            }
            Kind::GatewayRouter => drop(self.objects.routers.remove(&key)),
            Kind::L34Route => drop(self.objects.routes.remove(&key)),
            Kind::Service => drop(self.objects.services.remove(&key)),
            Kind::Slice => drop(self.objects.slices.remove(&key)),
            Kind::Pod => drop(self.pods.remove(name)),
            Kind::Deployment => drop(self.deployments.remove(name)),
            Kind::Budget => drop(self.budgets.remove(name)),
            Kind::ConfigMap => drop(self.config_maps.remove(name)),
            Kind::RouterState => drop(self.states.remove(name)),
        }
    }

    /// All objects of a kind as the server has them: what is not among them is gone.
    pub fn whole(&mut self, kind: Kind, objects: &[Value]) -> Vec<Note> {
        let there: BTreeSet<_> =
            objects.iter().map(|object| ObjectName::new(text(object, "namespace"), text(object, "name"))).collect();
        for name in self.names(kind) {
            if !there.contains(&name) {
                self.gone(kind, &name.namespace, &name.name);
            }
        }
        objects.iter().flat_map(|object| self.put(kind, object)).collect()
    }

    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        let ours = |name: &String| ObjectName::new(self.namespace.clone(), name.as_str());
        match kind {
            Kind::Gateway => self.objects.gateways.keys().cloned().collect(),
            Kind::GatewayClass => self.objects.gateway_classes.keys().cloned().collect(),
            Kind::GatewayRouter => self.objects.routers.keys().cloned().collect(),
            Kind::L34Route => self.objects.routes.keys().cloned().collect(),
            Kind::Service => self.objects.services.keys().cloned().collect(),
            Kind::Slice => self.objects.slices.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().map(ours).collect(),
            Kind::Deployment => self.deployments.keys().map(ours).collect(),
            Kind::Budget => self.budgets.keys().map(ours).collect(),
            Kind::ConfigMap => self.config_maps.keys().map(ours).collect(),
            Kind::RouterState => self.states.keys().map(ours).collect(),
        }
    }

    /// The version of a known object, as a number: newer objects have greater ones.
    fn version(&self, kind: Kind, key: &ObjectName) -> Option<u64> {
        let name = &*key.name;
        let metadata = match kind {
            Kind::Gateway => &self.objects.gateways.get(key)?.metadata,
            Kind::GatewayClass => &self.objects.gateway_classes.get(key)?.metadata,
            Kind::GatewayRouter => &self.objects.routers.get(key)?.metadata,
            Kind::L34Route => &self.objects.routes.get(key)?.metadata,
            Kind::Service => &self.objects.services.get(key)?.metadata,
            Kind::Slice => &self.objects.slices.get(key)?.metadata,
            Kind::Pod => &self.pods.get(name)?.metadata,
            Kind::Deployment => &self.deployments.get(name)?.metadata,
            Kind::Budget => &self.budgets.get(name)?.metadata,
            Kind::ConfigMap => &self.config_maps.get(name)?.metadata,
            Kind::RouterState => &self.states.get(name)?.metadata,
        };
        metadata.resource_version.as_ref()?.parse().ok()
    }

    /// An object of our namespace by its name.
    pub fn name(&self, name: &str) -> ObjectName {
        ObjectName { namespace: self.namespace.clone(), name: Arc::from(name) }
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

fn number(object: &Value) -> Option<u64> {
    text(object, "resourceVersion").parse().ok()
}

/// Keeps an object if it can be read.
fn keep<Key: Ord, K: DeserializeOwned>(
    map: &mut BTreeMap<Key, Arc<K>>,
    key: Key,
    object: &Value,
) -> Result<(), String> {
    let read = K::deserialize(object).map_err(|error| error.to_string())?;
    map.insert(key, Arc::new(read));
    Ok(())
}
