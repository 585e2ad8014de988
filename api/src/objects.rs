//! All objects of a source, parsed, as one whole value.
//!
//! What a source holds is what the last good reading of each object said; what could not be read is a condition here. Which
//! of the objects are accepted, and what they mean together, is not known here (see [`crate::accept`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::crd::{Gateway, GatewayClass, GatewayRouter, L34Route};
use crate::view::{Condition, ObjectName};

/// Everything that a source has read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// Gateways of any class.
    pub gateways: BTreeMap<ObjectName, Arc<Gateway>>,
    /// Their classes; these have no namespace.
    pub gateway_classes: BTreeMap<ObjectName, Arc<GatewayClass>>,
    /// `GatewayRouter`s of any Gateway.
    pub routers: BTreeMap<ObjectName, Arc<GatewayRouter>>,
    /// `L34Route`s of any Gateway.
    pub routes: BTreeMap<ObjectName, Arc<L34Route>>,
    /// Services, ours or not.
    pub services: BTreeMap<ObjectName, Arc<Service>>,
    /// The slices of their endpoints.
    pub slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    /// Secrets that hold keys.
    pub secrets: BTreeMap<ObjectName, Arc<Secret>>,
    /// Files and objects that were refused. The last good value of such an object is still above.
    pub conditions: BTreeSet<Condition>,
    /// Kinds of which this source knows nothing: it may not read them, or there is no definition of them. Of a folder:
    /// `L34Route`, if there is none in it, so that the addresses of the Gateway count.
    pub absent: BTreeSet<Kind>,
    /// The source has been read at least once: what is not here does not exist.
    pub synced: bool,
    /// Why the source cannot be read now; `None`: it can. What is known of it stays in use.
    pub unreachable: Option<Arc<str>>,
}

impl Objects {
    /// Whether the source has been read, and could be read now.
    pub const fn is_reached(&self) -> bool {
        self.synced && self.unreachable.is_none()
    }
}

/// The kinds that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `gateway.networking.k8s.io`.
    Gateway,
    /// `gateway.networking.k8s.io`, without a namespace.
    GatewayClass,
    /// Ours.
    GatewayRouter,
    /// Ours.
    L34Route,
    /// Of the core group.
    Service,
    /// `discovery.k8s.io`.
    EndpointSlice,
    /// Of the core group.
    Secret,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Gateway,
        Self::GatewayClass,
        Self::GatewayRouter,
        Self::L34Route,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
    ];

    /// As it stands in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::GatewayClass => "GatewayClass",
            Self::GatewayRouter => "GatewayRouter",
            Self::L34Route => "L34Route",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
        }
    }

    /// The group, as it stands before the `/` of `apiVersion:`.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Gateway | Self::GatewayClass => "gateway.networking.k8s.io",
            Self::GatewayRouter | Self::L34Route => crate::crd::GROUP,
            Self::Service | Self::Secret => "",
            Self::EndpointSlice => "discovery.k8s.io",
        }
    }

    /// Whether objects of it live in a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::GatewayClass)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The data of a Secret. `Debug` shows the keys only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    /// By key, decoded.
    pub data: BTreeMap<String, Arc<[u8]>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.data.keys()).finish()
    }
}
