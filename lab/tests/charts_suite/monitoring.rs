//! The dashboard and the alert rules: each metric exists, promtool takes each query, and the rules fire when they should.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tools::{documents, promtool, render, repository, run};

/// The names of all metrics that router and load balancer serve: from their tables.
fn known() -> BTreeSet<String> {
    let tables = [martlet_router::metrics::markdown(), martlet_lb::metrics::markdown()];
    let cells = tables.iter().flat_map(|table| table.lines()).filter_map(|line| line.strip_prefix("| `"));
    cells.filter_map(|cell| cell.split(['`', '{']).next()).map(str::to_owned).collect()
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("martlet_")).map(str::to_owned).collect()
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("expr").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| expressions(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(repository("deploy/dashboard/martlet.json"))?)?)
}

#[test]
fn every_metric_of_dashboard_and_alerts_exists() -> Result<()> {
    let known = known();
    ensure!(known.len() > 40, "{known:?}");
    for file in ["martlet.json", "alerts.yaml", "alerts.test.yaml"] {
        let text = fs::read_to_string(repository("deploy/dashboard").join(file))?;
        let named: BTreeSet<_> = named(&text);
        ensure!(named.len() >= 5, "{file} names {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        ensure!(unknown.is_empty(), "{file}: there are no metrics {unknown:?}");
    }
    Ok(())
}

#[test]
fn promtool_takes_every_query_of_the_dashboard() -> Result<()> {
    let mut queries = Vec::new();
    expressions(&dashboard()?, &mut queries);
    ensure!(queries.len() > 25, "{} queries", queries.len());
    let rules: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let query = query.replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$pod", ".*");
            serde_json::json!({"record": format!("query_{number}"), "expr": query})
        })
        .collect();
    let file = std::env::temp_dir().join(format!("martlet-queries-{}.yaml", std::process::id()));
    fs::write(&file, serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string())?;
    let result = run(&promtool()?, &["check", "rules", file.to_str().context("UTF-8")?]);
    fs::remove_file(&file)?;
    result.map(drop)
}

#[test]
fn the_dashboard_explains_each_panel_and_none_lies_on_another() -> Result<()> {
    let dashboard = dashboard()?;
    let mut taken = BTreeSet::new();
    let mut identifiers = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().context("a title")?;
        ensure!(identifiers.insert(panel["id"].as_u64()), "{title}: its id is another's");
        ensure!(panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("{title}: {key}"));
        for x in at("x")?..at("x")? + at("w")? {
            ensure!(x < 24, "{title}: too wide");
            for y in at("y")?..at("y")? + at("h")? {
                ensure!(taken.insert((x, y)), "{title} lies on another panel");
            }
        }
    }
    Ok(())
}

#[test]
fn the_alert_rules_fire_when_they_should() -> Result<()> {
    let folder = repository("deploy/dashboard");
    let path = |file: &str| folder.join(file).to_string_lossy().into_owned();
    run(&promtool()?, &["check", "rules", &path("alerts.yaml")])?;
    run(&promtool()?, &["test", "rules", &path("alerts.test.yaml")])?;
    let rules: Value = serde_saphyr::from_str(&fs::read_to_string(path("alerts.yaml"))?)?;
    for rule in rules["groups"][0]["rules"].as_array().context("rules")? {
        ensure!(rule["annotations"]["summary"].is_string() && rule["annotations"]["next"].is_string(), "{rule}");
    }
    // The chart carries them as they are.
    let objects = documents(&render(&["monitoring.enabled=true"])?)?;
    let carried = objects.iter().find(|object| object["kind"] == "PrometheusRule").context("no PrometheusRule")?;
    ensure!(carried["spec"]["groups"] == rules["groups"], "the chart's rules are others");
    Ok(())
}
