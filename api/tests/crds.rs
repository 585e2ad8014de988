//! The custom resource definitions in `deploy/crds/`: generated from the types, and never edited.
//!
//! `UPDATE=1 cargo test -p martlet-api --test crds` writes them anew.

use std::collections::BTreeSet;
use std::path::PathBuf;

use martlet_api::crd;
use serde_json::Value;

const HEAD: &str = "# Generated from api/src/crd/ by `UPDATE=1 cargo test -p martlet-api --test crds`: do not edit.\n";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds")
}

#[test]
fn the_definitions_in_deploy_are_those_of_the_types() {
    let mut expected = BTreeSet::new();
    for (file, definition) in crd::definitions() {
        let text = HEAD.to_owned() + &serde_saphyr::to_string(&definition).unwrap();
        let path = folder().join(file);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "{} has drifted: run the command in its first line", path.display());
        let back: Value = serde_saphyr::from_str(&written).unwrap();
        assert_eq!(back, serde_json::to_value(&definition).unwrap(), "{file} is read back as it was meant");
        expected.insert(file.to_owned());
    }
    let entries = std::fs::read_dir(folder()).unwrap();
    let found: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, expected, "no definition is left over");
}

fn rules(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let rule = map.get("rule").and_then(Value::as_str);
            found.extend(rule.filter(|_| map.contains_key("message")).map(str::to_owned));
            map.values().for_each(|value| rules(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| rules(value, found)),
        _ => {}
    }
}

/// The names in front of an opening parenthesis, outside of text.
fn functions(rule: &str) -> BTreeSet<String> {
    let outside: String = rule.split('\'').step_by(2).collect();
    let calls = outside.split('(').map(|before| {
        let name = before.trim_end_matches(|c: char| c.is_whitespace());
        let start = name.rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |place| place + 1);
        name[start..].to_owned()
    });
    let mut names: BTreeSet<String> = calls.collect();
    // What follows the last parenthesis is no call.
    if let Some(last) = outside.rsplit('(').next() {
        let start = last.rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |place| place + 1);
        names.remove(&last[start..]);
    }
    names.remove("");
    names
}

#[test]
fn rules_use_only_functions_that_kubernetes_1_28_has() {
    let known: BTreeSet<String> = [
        "all",
        "contains",
        "duration",
        "exists",
        "getMilliseconds",
        "has",
        "int",
        "lowerAscii",
        "matches",
        "size",
        "split",
        "startsWith",
        "trim",
    ]
    .map(str::to_owned)
    .into();
    let mut found = Vec::new();
    for (_, definition) in crd::definitions() {
        rules(&serde_json::to_value(&definition).unwrap(), &mut found);
    }
    assert!(found.len() > 20, "{} rules", found.len());
    for rule in found {
        let used = functions(&rule);
        assert!(used.is_subset(&known), "{:?} in {rule}", used.difference(&known));
    }
}

#[test]
fn definitions_have_short_names_columns_and_a_status_of_their_own() {
    let [(_, router), (_, route), (_, state)] = crd::definitions();
    for (definition, name, short) in
        [(&router, "gatewayrouters", "gwr"), (&route, "l34routes", "l34"), (&state, "routerstates", "rst")]
    {
        assert_eq!(definition.metadata.name.as_deref(), Some(format!("{name}.{}", crd::GROUP).as_str()));
        assert_eq!(definition.spec.names.short_names, Some(vec![short.to_owned()]));
        assert!(definition.spec.names.categories.as_ref().unwrap().contains(&"martlet".to_owned()));
        assert!(definition.spec.versions[0].additional_printer_columns.as_ref().unwrap().len() > 3);
    }
    for definition in [&router, &route] {
        assert!(definition.spec.versions[0].subresources.as_ref().unwrap().status.is_some());
    }
}
