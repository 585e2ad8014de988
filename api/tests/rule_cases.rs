//! The cases that the cluster suite shows to a real API server, here by `kube`'s CEL: each rule of each definition accepts and refuses.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use martlet_api::crd::{GatewayRouter, L34Route, RouterState};
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

fn schema<T: CustomResourceExt>() -> Value {
    let definition = T::crd();
    serde_json::to_value(definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap())
        .unwrap()
}

/// The messages of all rules below a schema.
fn messages(schema: &Value, found: &mut BTreeSet<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        found.insert(rule["message"].as_str().expect("a rule has a message").to_owned());
    }
    match schema {
        Value::Object(fields) => fields.values().for_each(|field| messages(field, found)),
        Value::Array(items) => items.iter().for_each(|item| messages(item, found)),
        _ => {}
    }
}

/// The object with the value at a JSON pointer replaced; null removes it.
fn with(object: &Value, at: &str, value: &Value) -> Value {
    let mut object = object.clone();
    let (parent, field) = at.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
    if value.is_null() {
        parent.remove(field);
    } else {
        parent.insert(field.to_owned(), value.clone());
    }
    object
}

fn refusals(rules: &CompiledSchema, object: &Value) -> Option<String> {
    Validator::new().validate_compiled(rules, object, None).err().map(|errors| format!("{errors:?}"))
}

#[test]
fn each_rule_accepts_and_refuses_by_the_cases_of_the_cluster_suite() {
    let rules: Rules = serde_saphyr::from_str(include_str!("../../lab/tests/cluster_suite/rules.yaml")).unwrap();
    let schemas = BTreeMap::from([("GatewayRouter", schema::<GatewayRouter>()), ("L34Route", schema::<L34Route>())]);
    let compiled: BTreeMap<_, _> = schemas.iter().map(|(kind, schema)| (*kind, compile_schema(schema))).collect();
    let mut refused = String::new();
    for case in &rules.cases {
        let base = &rules.base[&case.kind];
        let rules = &compiled[base["kind"].as_str().unwrap()];
        assert_eq!(refusals(rules, base), None);
        for value in &case.accept {
            assert_eq!(refusals(rules, &with(base, &case.at, value)), None, "{} {}: {value}", case.kind, case.at);
        }
        for value in &case.refuse {
            // What types, enumerations and limits refuse needs no rule, and may not fit one.
            let object = with(base, &case.at, value);
            refused.extend(refusals(rules, &object));
        }
    }
    let mut all = BTreeSet::new();
    for schema in schemas.values() {
        messages(schema, &mut all);
    }
    messages(&schema::<RouterState>(), &mut all);
    assert!(all.len() > 10, "{all:?}");
    let unmet: Vec<_> =
        all.iter().filter(|message| !refused.contains(message.escape_debug().to_string().as_str())).collect();
    assert!(unmet.is_empty(), "no case meets {unmet:#?} in {refused}");
}
