//! Kubernetes conditions: what is said, when it last changed, and whether anything has to be written at all.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use martlet_api::view;

/// The longest message that a condition may have, octets.
const LONGEST: usize = 4096;

/// What is to be said. `status` `None` is `Unknown`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Say {
    /// The condition's type.
    pub condition: &'static str,
    /// True, false, unknown.
    pub status: Option<bool>,
    /// One `CamelCase` word.
    pub reason: String,
    /// For a human.
    pub message: String,
}

impl Say {
    /// A condition that holds or does not.
    pub fn new(condition: &'static str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { condition, status: Some(status), reason: reason.to_owned(), message: message.into() }
    }

    /// What acceptance found, under a type of ours.
    pub fn of(condition: &'static str, found: &view::Condition) -> Self {
        Self::new(condition, found.status, &found.reason, &*found.message)
    }

    fn status(&self) -> &'static str {
        match self.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// The conditions to be written: the time of the last transition stays where the status stays.
pub fn conditions(existing: &[Condition], say: &[Say], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let mut said: Vec<_> = say
        .iter()
        .map(|say| {
            let old = existing.iter().find(|old| old.type_ == say.condition);
            let same = old.filter(|old| old.status == say.status());
            Condition {
                type_: say.condition.to_owned(),
                status: say.status().to_owned(),
                reason: say.reason.clone(),
                message: shortened(&say.message, LONGEST),
                observed_generation: generation,
                last_transition_time: same.map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
            }
        })
        .collect();
    sort(&mut said);
    said
}

/// Puts conditions in the order in which they are compared: the server keeps none.
pub fn sort(conditions: &mut [Condition]) {
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}

/// At most `longest` octets of a text.
pub(crate) fn shortened(message: &str, longest: usize) -> String {
    if message.len() <= longest {
        return message.to_owned();
    }
    let mut end = longest - 4;
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{} ...", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_time_changes_with_the_status_only() {
        let first = conditions(&[], &[Say::new("Ready", false, "Pending", "no pod")], Some(1), &at(1));
        let same = conditions(&first, &[Say::new("Ready", false, "Pending", "1 pod")], Some(2), &at(2));
        assert_eq!((same[0].last_transition_time.clone(), same[0].observed_generation), (at(1), Some(2)));
        let other = conditions(&same, &[Say::new("Ready", true, "Ready", "")], Some(2), &at(3));
        assert_eq!(other[0].last_transition_time, at(3));
    }

    #[test]
    fn a_message_is_never_longer_than_the_server_takes() {
        for text in ["a".repeat(5000), "\u{e4}".repeat(3000)] {
            let made = conditions(&[], &[Say::new("Ready", false, "Pending", text)], None, &at(1));
            assert!(made[0].message.len() <= 4096 && made[0].message.ends_with("..."));
        }
    }
}
