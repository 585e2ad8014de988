//! Conditions while they are collected.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ACCEPTED;
use crate::objects::Kind;
use crate::view::{Condition, ObjectName};

#[derive(Debug, Default)]
pub(super) struct Told {
    pub conditions: BTreeSet<Condition>,
}

impl Told {
    pub fn say(
        &mut self,
        kind: Kind,
        object: &ObjectName,
        condition: &str,
        status: bool,
        reason: &str,
        message: impl Into<Arc<str>>,
    ) {
        self.conditions.insert(Condition {
            kind: Arc::from(kind.name()),
            object: object.clone(),
            condition: Arc::from(condition),
            status,
            reason: Arc::from(reason),
            message: message.into(),
        });
    }

    pub fn accepted(&mut self, kind: Kind, object: &ObjectName, message: &str) {
        self.say(kind, object, ACCEPTED, true, ACCEPTED, message);
    }

    pub fn refused(
        &mut self,
        kind: Kind,
        object: &ObjectName,
        condition: &str,
        reason: &str,
        message: impl Into<Arc<str>>,
    ) {
        self.say(kind, object, condition, false, reason, message);
    }
}
