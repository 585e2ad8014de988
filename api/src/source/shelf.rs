//! What the files of a folder said, the last time that they said something good.
//!
//! Pure: texts by file name in, [`Objects`] out. A file that is broken throughout keeps the objects last seen in it; an object
//! that is refused keeps its last good value; what is in no file any more is gone. A condition says what is kept and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::accept::ACCEPTED;
use crate::objects::{Kind, Objects};
use crate::read::{self, Document, Key, Object};
use crate::view::{Condition, ObjectName};

/// The most objects of all files.
const MAX_OBJECTS: usize = 100_000;
/// The kind of a condition on a file.
pub(crate) const FILE: &str = "File";

/// What a file said.
#[derive(Clone, Default)]
struct File {
    /// Its text, if nothing was wrong with it: the same text need not be read again.
    text: Option<String>,
    objects: BTreeMap<Key, Object>,
}

/// The files of a folder and their objects.
#[derive(Default)]
pub struct Shelf {
    namespace: Arc<str>,
    /// By file name, in whose order the first one wins.
    files: BTreeMap<String, File>,
    objects: Objects,
    /// Kinds that are not ours, each noted once.
    foreign: BTreeSet<String>,
}

/// Texts may hold keys: they are not shown.
impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf")
            .field("files", &self.files.keys())
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}

impl Shelf {
    /// Empty. `namespace` is that of objects which name none.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: Arc::from(namespace), ..Self::default() }
    }

    /// What is known now.
    pub const fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The file whose object counts.
    pub fn file_of(&self, key: &Key) -> Option<&str> {
        self.files.iter().find(|(_, file)| file.objects.contains_key(key)).map(|(file, _)| file.as_str())
    }

    /// The names of the files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Everything is kept, because the folder cannot be read.
    pub fn keep(&mut self, folder: &str, why: &str) {
        self.objects.conditions.retain(|condition| &*condition.reason != "Unreadable");
        self.objects.conditions.insert(on_file(
            folder,
            "Unreadable",
            format!("{why}; what was last read stays in use"),
        ));
        self.objects.unreachable = Some(Arc::from(format!("{folder}: {why}")));
    }

    /// A new reading of all files: a text, or why it could not be read.
    pub fn put(&mut self, texts: BTreeMap<String, Result<String, String>>) {
        let mut conditions = BTreeSet::new();
        let before = std::mem::take(&mut self.files);
        for (name, text) in texts {
            let last = before.get(&name);
            if let (Some(last), Ok(text)) = (last, &text)
                && last.text.as_ref() == Some(text)
            {
                self.files.insert(name, last.clone());
                continue;
            }
            let told = conditions.len();
            let documents = text.and_then(|text| Ok((read::yaml(&text, &self.namespace)?, text)));
            let file = match documents {
                Ok((documents, text)) => {
                    let objects = self.read(&name, documents, &before, &mut conditions);
                    File { text: (told == conditions.len()).then_some(text), objects }
                }
                Err(why) => {
                    let objects = last.map(|last| last.objects.clone()).unwrap_or_default();
                    let what =
                        if objects.is_empty() { "nothing of it is used" } else { "its last good objects stay in use" };
                    conditions.insert(on_file(&name, "Invalid", format!("{why}; {what}")));
                    File { text: None, objects }
                }
            };
            self.files.insert(name, file);
        }
        self.gather(conditions);
    }

    fn read(
        &mut self,
        file_name: &str,
        documents: Vec<Document>,
        before: &BTreeMap<String, File>,
        conditions: &mut BTreeSet<Condition>,
    ) -> BTreeMap<Key, Object> {
        let last = |key: &Key| {
            let here = before.get(file_name).and_then(|file| file.objects.get(key));
            here.or_else(|| before.values().find_map(|file| file.objects.get(key))).cloned()
        };
        let mut objects = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for document in documents {
            match document {
                Document::Foreign(kind) => {
                    if self.foreign.insert(kind.clone()) {
                        tracing::info!(kind, file = file_name, "kind is not ours: ignored");
                    }
                }
                Document::Refused(None, why) => {
                    conditions.insert(on_file(file_name, "Invalid", format!("a document of it is not used: {why}")));
                }
                Document::Read(key, ..) | Document::Refused(Some(key), _) if !seen.insert(key.clone()) => {
                    conditions.insert(duplicate(&key, file_name, file_name));
                }
                Document::Read(key, object, unknown) => {
                    for field in unknown {
                        let message = format!("{file_name}: {field}: no such field: it is ignored");
                        conditions.insert(on(&key, "FieldsKnown", "UnknownField", message));
                    }
                    objects.insert(key, object);
                }
                Document::Refused(Some(key), why) => {
                    let kept = last(&key);
                    let what = if kept.is_some() { "its last good value stays in use" } else { "it is not used" };
                    conditions.insert(on(&key, ACCEPTED, "Invalid", format!("{file_name}: {why}; {what}")));
                    objects.extend(kept.map(|object| (key, object)));
                }
            }
        }
        objects
    }

    /// All files as one value.
    fn gather(&mut self, mut conditions: BTreeSet<Condition>) {
        let mut first: BTreeMap<&Key, (&str, &Object)> = BTreeMap::new();
        for (name, file) in &self.files {
            for (key, object) in &file.objects {
                let (winner, _) = *first.entry(key).or_insert((name, object));
                if winner != name {
                    conditions.insert(duplicate(key, name, winner));
                }
            }
        }
        let mut objects = Objects::default();
        for (key, (name, object)) in first.iter().take(MAX_OBJECTS) {
            tracing::trace!(kind = %key.kind, object = %key.name, file = name, "read");
            objects.insert(key.name.clone(), (*object).clone());
        }
        // Routes are there, too, if all of them are refused.
        let refused = conditions.iter().any(|condition| &*condition.kind == Kind::L34Route.name());
        let absent = if objects.routes.is_empty() && !refused { [Kind::L34Route].into() } else { BTreeSet::new() };
        if first.len() > MAX_OBJECTS {
            let message = format!("{} objects: only the first {MAX_OBJECTS} are used", first.len());
            conditions.insert(on_file("", "TooMany", message));
        }
        self.objects = Objects { conditions, absent, synced: true, ..objects };
    }
}

fn duplicate(key: &Key, name: &str, winner: &str) -> Condition {
    on(
        key,
        "Unique",
        "Duplicate",
        format!("{name}: the object is in {winner} already, which counts: remove one of them"),
    )
}

fn on(key: &Key, condition: &str, reason: &str, message: String) -> Condition {
    Condition {
        kind: Arc::from(key.kind.name()),
        object: key.name.clone(),
        condition: Arc::from(condition),
        status: false,
        reason: Arc::from(reason),
        message: Arc::from(message),
    }
}

fn on_file(name: &str, reason: &str, message: String) -> Condition {
    Condition {
        kind: Arc::from(FILE),
        object: ObjectName::new("", name),
        condition: Arc::from(ACCEPTED),
        status: false,
        reason: Arc::from(reason),
        message: Arc::from(message),
    }
}
