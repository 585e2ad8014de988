//! The custom resources on the real server: the examples apply as they stand, and every rule accepts and refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::ListParams;
use martlet_lab::cluster::{Cluster, objects};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Rules {
    base: BTreeMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    at: String,
    accept: Vec<Value>,
    refuse: Vec<Value>,
}

pub fn the_examples_apply_unmodified(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let namespace = cluster.tenant("examples").await?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let client = cluster.client()?;
        let names = objects::apply_folder(&client, &namespace, &folder).await?;
        ensure!(names.contains(&"sllb-a".to_owned()), "the seed's Gateway is among them: {names:?}");
        // The second time nothing is new.
        objects::apply_folder(&client, &namespace, &folder).await?;
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
        let namespace = cluster.tenant("demo").await?;
        objects::apply_folder(&client, &namespace, &demo).await.map(drop)
    })
}

/// `object` with the value at a JSON pointer replaced, and made if it is not there; null removes it.
fn with(object: &Value, at: &str, value: &Value) -> Result<Value> {
    let mut object = object.clone();
    let (parent, field) = at.rsplit_once('/').context("a pointer begins with /")?;
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut).with_context(|| format!("no {parent}"))?;
    if value.is_null() {
        parent.remove(field);
    } else {
        parent.insert(field.to_owned(), value.clone());
    }
    Ok(object)
}

pub fn each_rule_accepts_and_refuses(cluster: &Cluster<'_>) -> Result<()> {
    let rules: Rules = serde_saphyr::from_str(include_str!("rules.yaml"))?;
    cluster.inside(async |cluster| {
        let namespace = cluster.tenant("rules").await?;
        let client = cluster.client()?;
        let mut faults = Vec::new();
        let mut refusals = Vec::new();
        for base in rules.base.values() {
            objects::dry_run(&client, &namespace, base).await?;
        }
        for case in &rules.cases {
            let base = rules.base.get(&case.kind).with_context(|| format!("no base {}", case.kind))?;
            for value in &case.accept {
                if let Err(error) = objects::dry_run(&client, &namespace, &with(base, &case.at, value)?).await {
                    faults.push(format!("{} {}: {value} is refused: {error:#}", case.kind, case.at));
                }
            }
            for value in &case.refuse {
                match objects::dry_run(&client, &namespace, &with(base, &case.at, value)?).await {
                    Ok(()) => faults.push(format!("{} {}: {value} is accepted", case.kind, case.at)),
                    Err(error) => refusals.push(format!("{error:#}")),
                }
            }
        }
        for message in messages(cluster).await? {
            if !refusals.iter().any(|refusal| refusal.contains(&message)) {
                faults.push(format!("no case meets the rule {message:?}"));
            }
        }
        ensure!(faults.is_empty(), "{} faults:\n    {}", faults.len(), faults.join("\n    "));
        Ok(())
    })
}

/// The messages of all rules of our group, as the server has them.
async fn messages(cluster: &Cluster<'_>) -> Result<BTreeSet<String>> {
    fn collect(schema: &Value, found: &mut BTreeSet<String>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            found.extend(rule["message"].as_str().map(str::to_owned));
        }
        match schema {
            Value::Object(fields) => fields.values().for_each(|field| collect(field, found)),
            Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    for definition in Api::<CustomResourceDefinition>::all(cluster.client()?).list(&ListParams::default()).await? {
        if definition.spec.group == "meridio.experiment.gateway.api.poc" {
            collect(&serde_json::to_value(&definition.spec.versions)?, &mut found);
        }
    }
    ensure!(found.len() > 10, "only {} rules found", found.len());
    Ok(found)
}
