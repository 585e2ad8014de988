//! Text or JSON -> one object at a time, checked as an API server would check it.
//!
//! An object that is refused is told with its name, as far as that can be read, so that its last good value can be kept by
//! whoever reads again and again ([`crate::source`]). Nothing here knows files or a second object.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::ResourceExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crd::{self, MAX_ENDPOINTS_ANNOTATION, SUBNETS_ANNOTATION};
use crate::objects::{Kind, Objects, Secret};
use crate::view::ObjectName;
use crate::{accept, parse};

/// The longest text, octets.
pub const MAX_TEXT: u64 = 8 << 20;
/// The most documents in a text.
const MAX_DOCUMENTS: usize = 20_000;
/// The most nodes (scalars, lists, maps) in a text: some 30 of them are an endpoint.
const MAX_NODES: usize = 2_000_000;
/// The most aliases, and the most events that they may stand for: real files have a few.
const MAX_ALIASES: usize = 1000;
const MAX_REPLAYED: usize = 100_000;
/// The longest name.
const MAX_NAME: usize = 253;

/// Kind and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

/// An object of a kind that we read.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is what its name says")]
pub enum Object {
    Gateway(Arc<crd::Gateway>),
    GatewayClass(Arc<crd::GatewayClass>),
    GatewayRouter(Arc<crd::GatewayRouter>),
    L34Route(Arc<crd::L34Route>),
    Service(Arc<core::Service>),
    EndpointSlice(Arc<discovery::EndpointSlice>),
    Secret(Arc<Secret>),
}

/// What a document turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// An object, and the fields of it that nobody knows.
    Read(Key, Object, Vec<String>),
    /// An object of ours that is refused, with the reason; its name if it has one.
    Refused(Option<Key>, String),
    /// An object of a kind that is not ours: group, version and kind.
    Foreign(String),
}

/// Reads YAML: documents, and lists of objects.
///
/// # Errors
///
/// Where it is not YAML, or is beyond the limits: then no part of it is read.
pub fn yaml(text: &str, namespace: &str) -> Result<Vec<Document>, String> {
    if u64::try_from(text.len()).is_ok_and(|octets| octets > MAX_TEXT) {
        return Err(format!("is longer than {MAX_TEXT} octets: divide it"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED },
        // A snippet would show what stands around the error, which may be a key.
        with_snippet: false,
    };
    let values: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| one_line(&error.to_string()))?;
    Ok(values.into_iter().flat_map(|value| json(value, namespace)).collect())
}

/// Reads one JSON value: an object, or a list of objects.
pub fn json(value: Value, namespace: &str) -> Vec<Document> {
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    match value {
        Value::Null => Vec::new(),
        Value::Object(mut map) if is_list => match map.remove("items") {
            Some(Value::Array(items)) => items.into_iter().flat_map(|item| json(item, namespace)).collect(),
            Some(Value::Null) | None => Vec::new(),
            Some(_) => vec![Document::Refused(None, "items: must be a list of objects".to_owned())],
        },
        Value::Object(map) => vec![object(Value::Object(map), namespace)],
        other => {
            let what = if other.is_array() { "a list" } else { "a single value" };
            vec![Document::Refused(None, format!("is {what}: must be an object with apiVersion, kind and metadata"))]
        }
    }
}

fn object(value: Value, namespace: &str) -> Document {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    let (api_version, kind_name) = (text("apiVersion"), text("kind"));
    if api_version.is_empty() || kind_name.is_empty() {
        return Document::Refused(None, "must have apiVersion and kind".to_owned());
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == kind_name && kind.group() == group);
    let Some(kind) = known else { return Document::Foreign(format!("{api_version} {kind_name}")) };
    let name = match name(&value, kind, namespace) {
        Ok(name) => name,
        Err(message) => return Document::Refused(None, format!("{kind}: {message}")),
    };
    let key = Key { kind, name };
    let versions = versions(kind);
    if !versions.contains(&version) {
        let message = format!("apiVersion: `{api_version}`: the version must be {}", versions.join(" or "));
        return Document::Refused(Some(key), message);
    }
    match typed(kind, value, &key.name.namespace) {
        Ok((object, unknown)) => Document::Read(key, object, unknown),
        Err(message) => Document::Refused(Some(key), message),
    }
}

const fn versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Gateway | Kind::GatewayClass => &["v1", "v1beta1"],
        Kind::GatewayRouter | Kind::L34Route => &[crd::VERSION],
        Kind::Service | Kind::Secret | Kind::EndpointSlice => &["v1"],
    }
}

fn name(value: &Value, kind: Kind, default: &str) -> Result<ObjectName, String> {
    let text = |field: &str| match value.get("metadata").and_then(|metadata| metadata.get(field)) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!("metadata.{field}: `{other}`: must be text: write it in quotes")),
    };
    // The seed's GatewayClass has a slash in its name.
    let legal = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c) || (c == '/' && kind == Kind::GatewayClass)
    };
    let good = |name: &str| {
        (1..=MAX_NAME).contains(&name.len())
            && name.chars().all(legal)
            && !name.starts_with('-')
            && !name.ends_with('-')
    };
    let remedy = "must have 1 to 253 lower-case letters, digits, `-` or `.`";
    let name = text("name")?;
    if !good(name) {
        return Err(format!("metadata.name: `{name}`: {remedy}"));
    }
    let namespace = match text("namespace")? {
        "" => default,
        namespace if good(namespace) => namespace,
        namespace => return Err(format!("metadata.namespace: `{namespace}`: {remedy}")),
    };
    Ok(ObjectName::new(if kind.namespaced() { namespace } else { "" }, name))
}

fn typed(kind: Kind, value: Value, namespace: &str) -> Result<(Object, Vec<String>), String> {
    Ok(match kind {
        Kind::Gateway => {
            let mut gateway: crd::Gateway = structure(value)?;
            let annotations = gateway.spec.infrastructure.as_ref().and_then(|i| i.annotations.as_ref());
            let text = annotations.and_then(|annotations| annotations.get(SUBNETS_ANNOTATION));
            let faults = text.map(|text| accept::parse_subnets(text).1).unwrap_or_default();
            refuse_if(&faults)?;
            tidy(&mut gateway, namespace);
            (Object::Gateway(Arc::new(gateway)), Vec::new())
        }
        Kind::GatewayClass => (Object::GatewayClass(Arc::new(structure(value)?)), Vec::new()),
        Kind::GatewayRouter => {
            let (mut router, unknown) = of_ours::<crd::GatewayRouter>(value)?;
            parse::router(&router.spec).map_err(|refusals| parse::together(&refusals))?;
            tidy(&mut router, namespace);
            (Object::GatewayRouter(Arc::new(router)), unknown)
        }
        Kind::L34Route => {
            let (mut route, unknown) = of_ours::<crd::L34Route>(value)?;
            parse::route(&route.spec).map_err(|refusals| parse::together(&refusals))?;
            tidy(&mut route, namespace);
            (Object::L34Route(Arc::new(route)), unknown)
        }
        Kind::Service => {
            let mut service: core::Service = structure(value)?;
            let text = service.metadata.annotations.as_ref().and_then(|a| a.get(MAX_ENDPOINTS_ANNOTATION));
            refuse_if(text.and_then(|text| accept::max_endpoints(text).err()).as_slice())?;
            tidy(&mut service, namespace);
            (Object::Service(Arc::new(service)), Vec::new())
        }
        Kind::EndpointSlice => {
            let mut slice: discovery::EndpointSlice = structure(value)?;
            tidy(&mut slice, namespace);
            (Object::EndpointSlice(Arc::new(slice)), Vec::new())
        }
        Kind::Secret => (Object::Secret(Arc::new(secret(value)?)), Vec::new()),
    })
}

fn refuse_if(faults: &[String]) -> Result<(), String> {
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// What only a server knows of an object is no change of it.
fn tidy(object: &mut impl kube::Resource, namespace: &str) {
    let metadata = object.meta_mut();
    metadata.namespace.get_or_insert_with(|| namespace.to_owned());
    metadata.managed_fields = None;
    metadata.resource_version = None;
}

/// The value as a type; an error names the field.
fn structure<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let message = one_line(&error.inner().to_string());
        let remedy = if message.contains("expected a string") { ": write it in quotes" } else { "" };
        format!("{}: {message}{remedy}", error.path())
    })
}

/// A custom resource of ours, and the fields of its spec that are none.
fn of_ours<T: DeserializeOwned + Serialize>(value: Value) -> Result<(T, Vec<String>), String> {
    let written = value.get("spec").cloned().unwrap_or_default();
    let object: T = structure(value)?;
    let kept = serde_json::to_value(&object).map_err(|error| error.to_string())?;
    let mut unknown = Vec::new();
    unknown_fields("spec", &written, kept.get("spec").unwrap_or(&Value::Null), &mut unknown);
    Ok((object, unknown))
}

fn unknown_fields(path: &str, written: &Value, kept: &Value, unknown: &mut Vec<String>) {
    match (written, kept) {
        (Value::Object(written), Value::Object(kept)) => {
            for (field, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                match kept.get(field) {
                    Some(kept) => unknown_fields(&format!("{path}.{field}"), value, kept, unknown),
                    None => unknown.push(format!("{path}.{field}")),
                }
            }
        }
        (Value::Array(written), Value::Array(kept)) => {
            for (place, (value, kept)) in written.iter().zip(kept).enumerate() {
                unknown_fields(&format!("{path}[{place}]"), value, kept, unknown);
            }
        }
        _ => {}
    }
}

/// An error never shows what stands in a Secret.
fn secret(value: Value) -> Result<Secret, String> {
    let secret: core::Secret = serde_path_to_error::deserialize(value)
        .map_err(|error| format!("{}: must be base64 text under data, or plain text under stringData", error.path()))?;
    let encoded = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, Arc::from(value.0)));
    let mut data: BTreeMap<String, Arc<[u8]>> = encoded.collect();
    data.extend(
        secret.string_data.unwrap_or_default().into_iter().map(|(key, value)| (key, Arc::from(value.into_bytes()))),
    );
    Ok(Secret { data })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Objects {
    /// Puts an object in, in place of the one of that name.
    pub fn insert(&mut self, name: ObjectName, object: Object) {
        match object {
            Object::Gateway(object) => drop(self.gateways.insert(name, object)),
            Object::GatewayClass(object) => drop(self.gateway_classes.insert(name, object)),
            Object::GatewayRouter(object) => drop(self.routers.insert(name, object)),
            Object::L34Route(object) => drop(self.routes.insert(name, object)),
            Object::Service(object) => drop(self.services.insert(name, object)),
            Object::EndpointSlice(object) => drop(self.slices.insert(name, object)),
            Object::Secret(object) => drop(self.secrets.insert(name, object)),
        }
    }

    /// All objects in a text of YAML, as a source would hold them after a first reading; for tests and tools.
    pub fn from_yaml(text: &str, namespace: &str) -> Self {
        let mut shelf = crate::source::Shelf::new(namespace);
        shelf.put([("yaml".to_owned(), Ok(text.to_owned()))].into());
        shelf.objects().clone()
    }
}

/// The name of an object in a cluster.
pub fn name_of(object: &impl kube::Resource) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}
