//! Events on the server, without a flood: what was said of the same object lately is counted, not said again.
//!
//! [`Told`] is pure: notes in, requests out. Of one object and reason at most `MOST` Events with texts of their own are made in
//! a `WINDOW`; what else comes is counted on one more that says so. A count is written at most every `COUNT_EVERY`. What cannot be
//! told is dropped: Events are for humans, and conditions say the same.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::mpsc;

use crate::FIELD_MANAGER;
use crate::conditions::shortened;
use crate::notes::Note;

/// How long an Event is counted on after it was last seen.
const WINDOW: Duration = Duration::from_mins(10);
/// Between two writes of one count.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Texts of one object and reason in a window.
const MOST: usize = 10;
/// The longest text that the server takes is 1 KiB.
const LONGEST: usize = 1000;
/// Notes on their way; what does not fit is dropped.
const WAITING: usize = 256;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The text of the Event.
    pub text: String,
    /// The name of the one that was made, and how often it was seen; `None`: it is new.
    pub again: Option<(String, i32)>,
}

/// What was said lately.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<Subject, Vec<Known>>);

/// Kind, name, uid and reason.
type Subject = [String; 4];

#[derive(Debug)]
struct Known {
    text: String,
    /// Of the Event; `None`: it is not known yet, or could not be made.
    event: Option<String>,
    count: i32,
    seen: Instant,
    told: Instant,
}

fn subject(note: &Note) -> Subject {
    let of = &note.regarding;
    [&of.kind, &of.name, &of.uid, &Some(note.reason.to_owned())].map(|part| part.clone().unwrap_or_default())
}

/// The text of the one Event that stands for all others.
fn many(text: &str) -> String {
    format!("more than {MOST} like this one within {} minutes: {text}", WINDOW.as_secs() / 60)
}

impl Told {
    /// What is to be written of a note that comes at `now`.
    pub fn note(&mut self, note: &Note, now: Instant) -> Option<Step> {
        self.0.retain(|_, known| {
            known.retain(|known| now.duration_since(known.seen) < WINDOW);
            !known.is_empty()
        });
        let known = self.0.entry(subject(note)).or_default();
        let found = known.iter().position(|known| known.text == note.text);
        // Behind the texts of their own is the one for all others.
        let found = found.or_else(|| (known.len() > MOST).then_some(MOST));
        if let Some(known) = found.and_then(|place| known.get_mut(place)) {
            known.count = known.count.saturating_add(1);
            known.seen = now;
            if now.duration_since(known.told) < COUNT_EVERY {
                return None;
            }
            known.told = now;
            let again = known.event.clone().map(|event| (event, known.count));
            return Some(Step { text: known.text.clone(), again });
        }
        let text = if known.len() < MOST { note.text.clone() } else { many(&note.text) };
        known.push(Known { text: text.clone(), event: None, count: 1, seen: now, told: now });
        Some(Step { text, again: None })
    }

    /// The Event with this text of a note was made, under this name; `None`: it is not there (any more), and made anew next time.
    pub fn made(&mut self, note: &Note, text: &str, name: Option<String>) {
        let known = self.0.get_mut(&subject(note));
        if let Some(known) = known.into_iter().flatten().find(|known| known.text == text) {
            known.event = name;
        }
    }
}

/// Takes notes, and tells them one after the other.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Note>);

impl Events {
    /// Begins to tell. `instance` is who we are among the replicas.
    pub fn start(client: Client, instance: &str) -> Self {
        let (sender, notes) = mpsc::channel(WAITING);
        tokio::spawn(tell(client, instance.to_owned(), notes));
        Self(sender)
    }

    /// Tells a note, when its turn comes.
    pub fn tell(&self, note: Note) {
        if let Err(error) = self.0.try_send(note) {
            tracing::debug!(%error, "event not told");
        }
    }
}

async fn tell(client: Client, instance: String, mut notes: mpsc::Receiver<Note>) {
    let mut told = Told::default();
    while let Some(note) = notes.recv().await {
        let Some(step) = told.note(&note, Instant::now()) else { continue };
        let written = tokio::time::timeout(PATIENCE, write(&client, &instance, &note, &step)).await;
        let name = match written {
            Ok(Ok(name)) => Some(name),
            // The server forgets Events after an hour, and may be away.
            failed => {
                let error = failed.map(|result| result.err().map(|error| error.to_string()));
                tracing::debug!(reason = note.reason, ?error, "event not told");
                None
            }
        };
        told.made(&note, &step.text, name);
    }
}

/// Writes one Event, and returns its name.
async fn write(client: &Client, instance: &str, note: &Note, step: &Step) -> kube::Result<String> {
    let namespace = note.regarding.namespace.as_deref().unwrap_or("default");
    let api = Api::<Event>::namespaced(client.clone(), namespace);
    let now = Timestamp::now();
    match &step.again {
        None => {
            let name: String = note.regarding.name.iter().flat_map(|name| name.chars()).take(200).collect();
            let event = Event {
                metadata: ObjectMeta {
                    name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                    namespace: Some(namespace.to_owned()),
                    ..ObjectMeta::default()
                },
                action: Some("Reconcile".to_owned()),
                event_time: Some(MicroTime(now)),
                note: Some(shortened(&step.text, LONGEST)),
                reason: Some(note.reason.to_owned()),
                regarding: Some(note.regarding.clone()),
                reporting_controller: Some(FIELD_MANAGER.to_owned()),
                reporting_instance: Some(instance.chars().take(128).collect()),
                type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
                ..Event::default()
            };
            Ok(api.create(&PostParams::default(), &event).await?.name_any())
        }
        Some((name, count)) => {
            let series = EventSeries { count: *count, last_observed_time: MicroTime(now) };
            let patch = json!({"series": series});
            Ok(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?.name_any())
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn note(text: &str) -> Note {
        let regarding = ObjectReference { name: Some("sllb-a".to_owned()), ..ObjectReference::default() };
        Note { regarding, warning: true, reason: "VipWithdrawn", text: text.to_owned() }
    }

    fn new(text: &str) -> Step {
        Step { text: text.to_owned(), again: None }
    }

    #[test]
    fn each_text_is_an_event_of_its_own() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert_eq!(told.note(&note("pod-1: 20.0.0.1"), now), Some(new("pod-1: 20.0.0.1")));
        assert_eq!(told.note(&note("pod-1: 2000::1"), now), Some(new("pod-1: 2000::1")));
        let up = Note { reason: "VipAnnounced", ..note("pod-1: 20.0.0.1") };
        assert_eq!(told.note(&up, now), Some(new("pod-1: 20.0.0.1")));
    }

    #[test]
    fn a_flap_is_counted_and_the_count_is_written_now_and_then() {
        let (mut told, start) = (Told::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let flap = note("pod-1: 20.0.0.1");
        assert!(told.note(&flap, at(0)).is_some());
        told.made(&flap, &flap.text, Some("e1".to_owned()));
        let written: Vec<_> = (1..=60).filter_map(|second| told.note(&flap, at(second))).collect();
        let count = |count| Step { text: flap.text.clone(), again: Some(("e1".to_owned(), count)) };
        let counts: Vec<_> = [11, 21, 31, 41, 51, 61].map(count).into();
        assert_eq!(written, counts);
        assert_eq!(told.note(&flap, at(60 + 600)), Some(new("pod-1: 20.0.0.1")), "what is long ago is news again");
    }

    #[test]
    fn many_texts_of_one_object_become_one_event_that_says_so() {
        let (mut told, now) = (Told::default(), Instant::now());
        let steps: Vec<_> = (0..1000).filter_map(|n| told.note(&note(&format!("pod-{n}")), now)).collect();
        assert_eq!(steps.len(), MOST + 1);
        let last = &steps.last().unwrap().text;
        assert!(last.contains("more than 10") && last.contains("pod-10"), "{last}");
        // Nor is more kept.
        assert_eq!(told.0.values().map(Vec::len).sum::<usize>(), MOST + 1);
    }

    #[test]
    fn what_could_not_be_made_is_made_later() {
        let (mut told, start) = (Told::default(), Instant::now());
        let flap = note("pod-1: 20.0.0.1");
        assert!(told.note(&flap, start).is_some());
        told.made(&flap, &flap.text, None);
        assert_eq!(told.note(&flap, start + COUNT_EVERY), Some(new("pod-1: 20.0.0.1")));
    }
}
