//! Objects of a cluster lab: YAML is applied as it stands, and the CRDs that the product needs are installed.
//!
//! Applying is server-side, with strict field validation: a field that the server does not know is an error.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::{Scope, oneshot};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::Cluster;

/// Who owns the fields that a test applies.
pub const MANAGER: &str = "lab";

/// A `NetworkAttachmentDefinition`, as much of it as objects that name one need.
fn network_attachment_definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io",
            "scope": "Namespaced",
            "names": {
                "plural": "network-attachment-definitions",
                "singular": "network-attachment-definition",
                "kind": "NetworkAttachmentDefinition",
                "shortNames": ["net-attach-def"],
            },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {"spec": {"type": "object", "properties": {"config": {"type": "string"}}}},
                }},
            }],
        },
    })
}

/// The documents of a YAML text; empty ones are left out.
///
/// # Errors
/// It is not YAML.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

impl Cluster<'_> {
    /// Installs all CRDs and waits until the server serves them.
    pub(super) async fn install(&self) -> Result<()> {
        let client = self.client()?;
        let mut names = vec![apply(&client, "", &network_attachment_definition()).await?];
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        for folder in [self.gateway_api(), ours] {
            names.extend(apply_folder(&client, "", &folder).await?);
        }
        let api = Api::<CustomResourceDefinition>::all(client);
        for name in names {
            wait_for(&format!("the CRD {name}"), Duration::from_secs(30), async || {
                let conditions = api.get(&name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
                Ok(conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Makes a namespace for a test, named `<name>-<n>` so that no test meets another's leftovers.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn tenant(&self, name: &str) -> Result<String> {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
        let name = format!("{name}-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let api = Api::<KubeNamespace>::all(self.client()?);
        api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&body)).await?;
        Ok(name)
    }
}

/// Applies every document of every YAML file of a folder, in the order of the file names. Returns the names.
///
/// # Errors
/// A file cannot be read, or the server refuses: the error names file and object.
pub async fn apply_folder(client: &Client, namespace: &str, folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read the folder {}", folder.display()))?;
    let mut files: Vec<_> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    if files.is_empty() {
        bail!("no YAML in {}", folder.display());
    }
    let mut names = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let documents = documents(&text).with_context(|| format!("read {}", file.display()))?;
        for document in documents {
            names.push(apply(client, namespace, &document).await.with_context(|| format!("in {}", file.display()))?);
        }
    }
    Ok(names)
}

/// Applies every document of a YAML text.
///
/// # Errors
/// It is not YAML, or the server refuses.
pub async fn apply_text(client: &Client, namespace: &str, text: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for document in documents(text)? {
        names.push(apply(client, namespace, &document).await?);
    }
    Ok(names)
}

/// Applies one object, in `namespace` unless it names its own. Returns its name.
///
/// # Errors
/// The server refuses: the error names the object.
pub async fn apply(client: &Client, namespace: &str, object: &Value) -> Result<String> {
    let (api, name) = api_of(client, namespace, object).await?;
    let params = PatchParams::apply(MANAGER).force().validation_strict();
    api.patch(&name, &params, &Patch::Apply(object)).await.with_context(|| format!("apply {} {name}", kind(object)))?;
    Ok(name)
}

/// Whether the server would take the object: nothing is stored.
///
/// # Errors
/// The server's refusal.
pub async fn dry_run(client: &Client, namespace: &str, object: &Value) -> Result<()> {
    let (api, name) = api_of(client, namespace, object).await?;
    let params = PatchParams::apply(MANAGER).force().validation_strict().dry_run();
    api.patch(&name, &params, &Patch::Apply(object)).await.with_context(|| format!("apply {} {name}", kind(object)))?;
    Ok(())
}

/// Removes the object that `object` names; nothing if there is none.
///
/// # Errors
/// The server refuses.
pub async fn delete(client: &Client, namespace: &str, object: &Value) -> Result<()> {
    let (api, name) = api_of(client, namespace, object).await?;
    match api.delete(&name, &kube::api::DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or("object")
}

async fn api_of(client: &Client, namespace: &str, object: &Value) -> Result<(Api<DynamicObject>, String)> {
    let types: TypeMeta = serde_json::from_value(object.clone()).context("no apiVersion and kind")?;
    let kind = GroupVersionKind::try_from(&types)?;
    let name = object["metadata"]["name"].as_str().context("no metadata.name")?.to_owned();
    let (resource, capabilities) =
        oneshot::pinned_kind(client, &kind).await.with_context(|| format!("look up {kind:?}"))?;
    let api = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
    };
    Ok((api, name))
}

/// Looks until the look gives a value.
///
/// # Errors
/// It does not within `limit`; the last error of a look is in the text.
pub async fn wait_for<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = match look().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() > limit {
            bail!("waited {} s for {what}; last seen: {seen}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
