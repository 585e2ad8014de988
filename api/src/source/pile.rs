//! What a cluster said of each kind, with the last good value of each object.
//!
//! Pure: changes in, [`Objects`] out. A list is complete when its end was seen; until then nothing is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::accept::ACCEPTED;
use crate::objects::{Kind, Objects};
use crate::read::{self, Document, Key, Object};
use crate::view::{Condition, ObjectName};

/// A change of one kind.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A list of all objects begins.
    Begin,
    /// An object is there.
    Put(Value),
    /// An object is gone.
    Remove(String),
    /// The list ends: what was not in it is gone.
    End,
    /// As `Begin`, but the end is not told when the list ends: what is there counts at once.
    BeginRound,
    /// The round was shown whole, unless it was interrupted.
    EndRound,
    /// The kind cannot be had.
    Absent,
    /// The connection is lost, and why: everything is kept.
    Lost(String),
    /// Nothing.
    Nothing,
}

#[derive(Debug, Default)]
struct Pile {
    objects: BTreeMap<Key, Object>,
    refused: BTreeMap<Key, Condition>,
    /// The names seen since the list began.
    seen: Option<BTreeSet<Key>>,
    /// Between the begin and the end of a list.
    listing: bool,
    state: State,
    /// Its absence was logged.
    noted: bool,
    /// Why it was last interrupted, if nothing came since.
    fault: Option<String>,
}

/// Whether the cluster has a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// It was never listed.
    #[default]
    Unknown,
    Known,
    /// It cannot be had.
    Absent,
}

/// All kinds.
#[derive(Debug)]
pub(super) struct Piles {
    namespace: Arc<str>,
    kinds: BTreeMap<Kind, Pile>,
}

impl Piles {
    pub fn new(namespace: &str, kinds: &BTreeSet<Kind>) -> Self {
        Self { namespace: Arc::from(namespace), kinds: kinds.iter().map(|kind| (*kind, Pile::default())).collect() }
    }

    /// No list is half read.
    pub fn is_settled(&self) -> bool {
        self.kinds.values().all(|pile| !pile.listing)
    }

    pub fn apply(&mut self, kind: Kind, change: Change) {
        let Some(pile) = self.kinds.get_mut(&kind) else { return };
        match change {
            Change::Begin | Change::BeginRound => {
                pile.listing = matches!(change, Change::Begin);
                if !pile.listing {
                    pile.state = State::Known;
                }
                pile.seen = Some(BTreeSet::new());
            }
            Change::Put(value) => pile.put(kind, value, &self.namespace),
            Change::Remove(name) => {
                let namespace = if kind.namespaced() { &*self.namespace } else { "" };
                let key = Key { kind, name: ObjectName::new(namespace, name) };
                pile.objects.remove(&key);
                pile.refused.remove(&key);
            }
            Change::End | Change::EndRound => {
                if let Some(seen) = pile.seen.take() {
                    pile.objects.retain(|key, _| seen.contains(key));
                    pile.refused.retain(|key, _| seen.contains(key));
                    (pile.listing, pile.state) = (false, State::Known);
                }
            }
            Change::Absent => {
                if !pile.noted {
                    tracing::info!(%kind, "the cluster does not give this kind: no permission, or no definition of it");
                }
                pile.noted = true;
                // What was readable once is kept: a lost permission must not take VIPs down.
                pile.state = if pile.objects.is_empty() { State::Absent } else { State::Known };
                (pile.listing, pile.seen) = (false, None);
            }
            Change::Lost(why) => {
                (pile.listing, pile.seen) = (false, None);
                if pile.fault.as_ref() != Some(&why) {
                    tracing::warn!(%kind, error = why, "watch interrupted: what is known stays in use");
                    pile.fault = Some(why);
                }
                return;
            }
            Change::Nothing => {}
        }
        pile.fault = None;
    }

    /// All kinds as one value.
    pub fn objects(&self) -> Objects {
        let mut objects = Objects { absent: Kind::ALL.into(), ..Objects::default() };
        for (kind, pile) in &self.kinds {
            if pile.state != State::Absent {
                objects.absent.remove(kind);
            }
            objects.conditions.extend(pile.refused.values().cloned());
            for (key, object) in &pile.objects {
                objects.insert(key.name.clone(), object.clone());
            }
        }
        objects.synced = self.kinds.values().all(|pile| pile.state != State::Unknown);
        objects
    }
}

impl Pile {
    fn put(&mut self, kind: Kind, mut value: Value, namespace: &str) {
        // Items of a list do not say what they are.
        let version = if kind.group() == crate::crd::GROUP { crate::crd::VERSION } else { "v1" };
        let api_version =
            if kind.group().is_empty() { version.to_owned() } else { format!("{}/{version}", kind.group()) };
        if let Some(map) = value.as_object_mut() {
            map.insert("apiVersion".to_owned(), Value::from(api_version));
            map.insert("kind".to_owned(), Value::from(kind.name()));
        }
        for document in read::json(value, namespace) {
            match document {
                // Fields that we do not know are of a newer definition.
                Document::Read(key, object, _) => {
                    self.note(&key);
                    self.refused.remove(&key);
                    self.objects.insert(key, object);
                }
                Document::Refused(Some(key), why) => {
                    self.note(&key);
                    let kept = self.objects.contains_key(&key);
                    let what = if kept { "its last good value stays in use" } else { "it is not used" };
                    let condition = Condition {
                        kind: Arc::from(kind.name()),
                        object: key.name.clone(),
                        condition: Arc::from(ACCEPTED),
                        status: false,
                        reason: Arc::from("Invalid"),
                        message: Arc::from(format!("{why}; {what}")),
                    };
                    self.refused.insert(key, condition);
                }
                Document::Refused(None, why) => tracing::warn!(%kind, why, "object without a good name: ignored"),
                Document::Foreign(other) => tracing::warn!(%kind, other, "object of another kind: ignored"),
            }
        }
    }

    fn note(&mut self, key: &Key) {
        if let Some(seen) = &mut self.seen {
            seen.insert(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn router(name: &str, address: &str) -> Change {
        Change::Put(
            json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": "7"}, "spec": {"address": address}}),
        )
    }

    fn piles(kinds: &[Kind]) -> Piles {
        Piles::new("default", &kinds.iter().copied().collect())
    }

    fn play(piles: &mut Piles, kind: Kind, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| piles.apply(kind, change));
    }

    fn addresses(piles: &Piles) -> Vec<String> {
        piles.objects().routers.values().map(|router| router.spec.address.clone()).collect()
    }

    #[test]
    fn a_source_is_synced_when_every_kind_was_listed_or_is_refused() {
        let mut piles = piles(&[Kind::GatewayRouter, Kind::L34Route]);
        play(&mut piles, Kind::GatewayRouter, [Change::Begin, router("a", "10.0.0.1")]);
        assert!(!piles.is_settled());
        play(&mut piles, Kind::GatewayRouter, [Change::End]);
        assert!(piles.is_settled() && !piles.objects().synced);
        play(&mut piles, Kind::L34Route, [Change::Begin, Change::Absent]);
        assert!(piles.is_settled() && piles.objects().synced);
        assert!(piles.objects().absent.contains(&Kind::L34Route), "the addresses of the Gateway are taken");
        play(&mut piles, Kind::L34Route, [Change::Begin, Change::End]);
        assert!(!piles.objects().absent.contains(&Kind::L34Route), "permitted later");
    }

    #[test]
    fn what_a_second_list_does_not_show_is_gone_but_not_before_its_end() {
        let mut piles = piles(&[Kind::GatewayRouter]);
        play(
            &mut piles,
            Kind::GatewayRouter,
            [Change::Begin, router("a", "10.0.0.1"), router("b", "10.0.0.2"), Change::End],
        );
        play(&mut piles, Kind::GatewayRouter, [Change::Lost(String::new()), Change::Begin, router("b", "10.0.0.3")]);
        assert_eq!(addresses(&piles), ["10.0.0.1", "10.0.0.3"]);
        play(&mut piles, Kind::GatewayRouter, [Change::Lost(String::new())]);
        assert!(piles.is_settled());
        assert_eq!(addresses(&piles), ["10.0.0.1", "10.0.0.3"], "an interrupted list removes nothing");
        play(&mut piles, Kind::GatewayRouter, [Change::Begin, router("b", "10.0.0.3"), Change::End]);
        assert_eq!(addresses(&piles), ["10.0.0.3"]);
        play(&mut piles, Kind::GatewayRouter, [Change::Remove("b".to_owned())]);
        assert!(addresses(&piles).is_empty());
    }

    #[test]
    fn a_refused_object_keeps_its_last_good_value_and_hurts_no_other() {
        let mut piles = piles(&[Kind::GatewayRouter]);
        let odd = Change::Put(json!({"metadata": {"name": "odd"}, "spec": {"address": 7}}));
        play(
            &mut piles,
            Kind::GatewayRouter,
            [Change::Begin, odd, router("a", "10.0.0.1"), Change::End, router("a", "nowhere")],
        );
        assert_eq!(addresses(&piles), ["10.0.0.1"]);
        let told: Vec<String> =
            piles.objects().conditions.iter().map(|c| format!("{}: {}", c.object, c.message)).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].starts_with("default/a: spec.address: `nowhere`")
                && told[0].ends_with("last good value stays in use")
        );
        assert!(told[1].starts_with("default/odd: spec.address"), "{told:?}");
        play(&mut piles, Kind::GatewayRouter, [router("a", "10.0.0.2"), Change::Remove("odd".to_owned())]);
        assert!(piles.objects().conditions.is_empty());
    }

    #[test]
    fn a_lost_permission_takes_nothing_down() {
        let mut piles = piles(&[Kind::GatewayRouter]);
        play(&mut piles, Kind::GatewayRouter, [Change::Begin, router("a", "10.0.0.1"), Change::End, Change::Absent]);
        assert_eq!(addresses(&piles), ["10.0.0.1"]);
        assert!(!piles.objects().absent.contains(&Kind::GatewayRouter));
    }

    #[test]
    fn secrets_count_at_once_and_go_with_the_round_that_does_not_show_them() {
        let secret = |name: &str| Change::Put(json!({"metadata": {"name": name}, "data": {"key": "c2VjcmV0"}}));
        let mut piles = piles(&[Kind::Secret]);
        play(&mut piles, Kind::Secret, [Change::BeginRound, secret("a"), secret("b")]);
        assert!(piles.is_settled() && piles.objects().synced);
        assert_eq!(piles.objects().secrets.len(), 2);
        play(&mut piles, Kind::Secret, [Change::Lost(String::new()), Change::EndRound]);
        assert_eq!(piles.objects().secrets.len(), 2, "interrupted: nothing is gone");
        play(&mut piles, Kind::Secret, [Change::BeginRound, secret("b"), Change::EndRound]);
        assert_eq!(piles.objects().secrets.len(), 1);
    }

    #[test]
    fn what_only_the_server_counts_is_no_change() {
        let mut piles = piles(&[Kind::GatewayRouter]);
        play(&mut piles, Kind::GatewayRouter, [Change::Begin, router("a", "10.0.0.1"), Change::End]);
        let before = piles.objects();
        let newer = json!({"metadata": {"name": "a", "namespace": "default", "resourceVersion": "8"}, "spec": {"address": "10.0.0.1"}});
        play(&mut piles, Kind::GatewayRouter, [Change::Put(newer)]);
        assert_eq!(before, piles.objects());
    }
}
