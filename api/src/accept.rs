//! The one acceptance function: all objects of a source in, what the pod of one Gateway may use out.
//!
//! Pure. One bad object never hurts another: it is left out, and a condition says why.

use std::collections::{BTreeMap, BTreeSet};

use crate::objects::Objects;
use crate::view::{ObjectName, View};

/// What `objects` mean for the Gateway `gateway`.
pub fn view(objects: &Objects, gateway: &ObjectName) -> View {
    View {
        gateway: gateway.clone(),
        exists: false,
        routers: BTreeMap::new(),
        routes: BTreeMap::new(),
        services: BTreeMap::new(),
        vips: BTreeSet::new(),
        subnets: BTreeSet::new(),
        conditions: objects.conditions.clone(),
    }
}
