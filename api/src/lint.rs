//! `martlet lint DIR`: what is wrong with a folder of YAML, without a cluster. One fault, one line.
//!
//! The same reading and the same acceptance as in the pods, for every Gateway in the folder.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::accept;
use crate::crd::SERVICE_LABEL;
use crate::objects::Kind;
use crate::read::Key;
use crate::source::{FILE, Shelf, read_folder};
use crate::view::{Condition, ObjectName};

/// Something that is wrong, or does not do what it seems to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file, as far as there is one.
    pub file: Option<String>,
    /// The kind of the object; `File` where it is the file itself.
    pub kind: String,
    /// The object, or the file.
    pub object: ObjectName,
    /// Field, value, what would be accepted.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        match self.kind.as_str() {
            FILE => write!(f, "{}: {}", self.object, self.message),
            kind => write!(f, "{kind} {}: {}", self.object, self.message),
        }
    }
}

/// All faults of the folder `dir`, in order. Objects that name no namespace are in `default`.
pub fn lint(dir: &Path) -> Vec<Fault> {
    let mut shelf = Shelf::new("default");
    read_folder(dir, &mut shelf);
    let objects = shelf.objects();
    let mut conditions: BTreeSet<Condition> = objects.conditions.clone();
    let namespaces: BTreeSet<_> =
        objects.routers.keys().chain(objects.routes.keys()).map(|name| &name.namespace).collect();
    for namespace in namespaces {
        conditions.extend(accept::unattached(objects, namespace));
    }
    for (name, gateway) in &objects.gateways {
        if accept::ours(objects, gateway) {
            conditions.extend(accept::view(objects, name).conditions);
        }
    }
    let wrong = conditions.into_iter().filter(|condition| match &*condition.condition {
        accept::CAPACITY_EXCEEDED => condition.status,
        accept::ACCEPTED => !condition.status || &*condition.reason != accept::ACCEPTED,
        accept::RESOLVED_REFS => !condition.status || &*condition.reason != accept::RESOLVED_REFS,
        _ => !condition.status,
    });
    let mut faults: BTreeSet<Fault> = wrong.map(|condition| fault(&shelf, condition)).collect();
    for (name, slice) in &objects.slices {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        let message = match service {
            None => format!("metadata.labels: must have {SERVICE_LABEL} with the name of a Service"),
            Some(service)
                if objects.services.contains_key(&ObjectName::new(name.namespace.clone(), service.as_str())) =>
            {
                continue;
            }
            Some(service) => format!(
                "metadata.labels[{SERVICE_LABEL}]: `{service}`: must be a Service in namespace {}",
                name.namespace
            ),
        };
        let file = shelf.file_of(&Key { kind: Kind::EndpointSlice, name: name.clone() }).map(str::to_owned);
        faults.insert(Fault { file, kind: Kind::EndpointSlice.name().to_owned(), object: name.clone(), message });
    }
    faults.into_iter().collect()
}

fn fault(shelf: &Shelf, condition: Condition) -> Fault {
    let kind = condition.kind.to_string();
    let mut message = condition.message.to_string();
    if kind == FILE {
        // The file is the object.
        return Fault { file: None, kind, object: condition.object, message };
    }
    // What the reading refused begins with its file; what the acceptance refused knows none.
    let told = shelf.files().find(|file| message.starts_with(&format!("{file}: "))).map(str::to_owned);
    if let Some(told) = &told {
        message.drain(..told.len() + 2);
    }
    let key = Kind::ALL
        .into_iter()
        .find(|known| known.name() == kind)
        .map(|kind| Key { kind, name: condition.object.clone() });
    let file = told.or_else(|| key.and_then(|key| shelf.file_of(&key)).map(str::to_owned));
    Fault { file, kind, object: condition.object, message }
}
