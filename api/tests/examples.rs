//! The YAML of `deploy/examples/`: what users copy first must be accepted as it stands.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use martlet_api::view::{Bfd, ObjectName, Protocol, TransportProtocol, View};
use martlet_api::{Objects, accept, crd, read};
use serde_json::Value;

fn text(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn all() -> Objects {
    let files = ["gateway.yaml", "gatewayclass.yaml", "gatewayrouter.yaml", "l34route.yaml", "service.yaml"];
    Objects::from_yaml(&files.map(text).join("\n---\n"), "default")
}

fn seen() -> View {
    accept::view(&all(), &ObjectName::new("default", "sllb-a"))
}

#[test]
fn every_example_is_read() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let documents = read::yaml(&std::fs::read_to_string(&path).unwrap(), "default").unwrap();
        assert!(!documents.is_empty(), "{}", path.display());
        for document in documents {
            match document {
                read::Document::Read(_, _, unknown) => assert_eq!(unknown, Vec::<String>::new(), "{}", path.display()),
                read::Document::Foreign(kind) => assert_eq!(kind, "k8s.cni.cncf.io/v1 NetworkAttachmentDefinition"),
                read::Document::Refused(_, why) => panic!("{}: {why}", path.display()),
            }
        }
        files += 1;
    }
    assert!(files >= 6);
}

#[test]
fn the_gateway_is_accepted_by_the_name_of_its_class() {
    let view = seen();
    assert!(view.exists);
    assert_eq!(view.subnets, BTreeSet::from(["169.111.100.0/24".parse().unwrap()]));
    assert!(view.conditions.iter().all(|condition| condition.status), "{:#?}", view.conditions);
}

#[test]
fn the_gateway_router_is_what_it_says() {
    let view = seen();
    let router = &view.routers["gateway-a-v4"];
    assert_eq!(router.address.to_string(), "169.254.100.150");
    assert_eq!(router.interface.as_deref(), Some("vlan-100"));
    let Protocol::Bgp(bgp) = &router.protocol else { panic!("{router:?}") };
    assert_eq!((bgp.local_asn, bgp.remote_asn), (Some(8103), Some(4_248_829_953)));
    assert_eq!((bgp.local_port, bgp.remote_port, bgp.hold_time_s), (Some(10179), Some(10179), Some(24)));
    assert_eq!(bgp.bfd, Some(Bfd { min_tx: Duration::from_millis(300), multiplier: 5, ..Bfd::default() }));
    assert_eq!(bgp.extra, martlet_api::view::BgpExtra::default());
}

#[test]
fn the_route_and_its_service_are_what_they_say() {
    let view = seen();
    let route = &view.routes["vip-20-0-0-1-multi-ports-a"];
    assert_eq!(route.priority, 10);
    assert_eq!(route.destination_ports, BTreeSet::from([(4000, 4001)]));
    assert_eq!(route.source_ports, BTreeSet::new(), "0-65535 is any");
    assert_eq!(route.sources, BTreeSet::from(["0.0.0.0/0".parse().unwrap()]));
    assert_eq!(route.protocols, BTreeSet::from([TransportProtocol::Tcp]));
    assert_eq!(&*route.backend, "service-a");
    assert_eq!(view.vips, BTreeSet::from(["20.0.0.1/32".parse().unwrap()]));
    assert_eq!(view.services["service-a"].max_endpoints, 100);
}

#[test]
fn the_class_as_the_seed_wrote_it_is_read_from_a_folder() {
    let seed = text("gatewayclass.yaml").replace("name: stateless", "name: meridio-experiment/stateless");
    let objects = Objects::from_yaml(&(seed + "\n---\n" + &text("gateway.yaml")), "default");
    assert_eq!(objects.gateway_classes.len(), 1);
    assert!(accept::view(&objects, &ObjectName::new("default", "sllb-a")).exists);
}

/// The paths of all properties.
fn properties(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        properties(&path, schema, found);
        properties(&path, &schema["items"], found);
        found.insert(path);
    }
}

/// The paths of all fields that are there.
fn fields(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let path = format!("{path}.{name}");
                fields(&path, value, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(path, item, found)),
        _ => {}
    }
}

#[test]
fn one_example_shows_every_field_and_is_accepted() {
    let text = text("all-fields.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    for (_, definition) in crd::definitions().into_iter().filter(|(file, _)| *file != "routerstates.yaml") {
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        let mut known = BTreeSet::new();
        properties("spec", &schema["openAPIV3Schema"]["properties"]["spec"], &mut known);
        // A static next hop has the profile of BGP; it is shown once.
        known.retain(|path| !path.starts_with("spec.static.bfd."));
        let mut shown = BTreeSet::new();
        for document in documents.iter().filter(|document| document["kind"] == definition.spec.names.kind.as_str()) {
            fields("spec", &document["spec"], &mut shown);
        }
        let missing: Vec<_> = known.difference(&shown).collect();
        assert!(known.len() > 20 && missing.is_empty(), "{missing:?}");
    }
    let view = accept::view(&Objects::from_yaml(&text, "default"), &ObjectName::new("default", "sllb-all"));
    assert!(view.conditions.iter().all(|condition| condition.status), "{:#?}", view.conditions);
    assert_eq!((view.routers.len(), view.vips.len(), view.services["service-all"].max_endpoints), (3, 2, 200));
}
