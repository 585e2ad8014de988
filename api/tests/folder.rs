//! A real folder, watched. Waits are generous and end with what is waited for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use martlet_api::objects::Kind;
use martlet_api::{Objects, lint, source};
use tokio::sync::watch;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("martlet-api-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn router(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: meridio.experiment.gateway.api.poc/v1alpha1\nkind: GatewayRouter\nmetadata:\n  name: {name}\n  labels: {{service.kubernetes.io/service-proxy-name: sllb-a}}\nspec:\n  address: {address}\n"
    )
}

fn addresses(objects: &Objects) -> Vec<String> {
    objects.routers.values().map(|router| router.spec.address.clone()).collect()
}

async fn until(objects: &mut watch::Receiver<Arc<Objects>>, what: impl FnMut(&Arc<Objects>) -> bool) {
    tokio::time::timeout(Duration::from_secs(30), objects.wait_for(what))
        .await
        .expect("it comes")
        .expect("source lives");
}

#[tokio::test]
async fn the_first_value_is_there_at_once_and_changes_follow() {
    let folder = Folder::new();
    folder.write("a.yaml", &router("a", "10.0.0.1"));
    let (mut objects, _task) = source::folder(folder.0.clone(), "default");
    assert!(objects.borrow_and_update().synced);
    assert_eq!(addresses(&objects.borrow()), ["10.0.0.1"]);
    folder.write("a.yaml", &router("a", "10.0.0.2"));
    until(&mut objects, |objects| addresses(objects) == ["10.0.0.2"]).await;
    folder.write("b.yml", &router("b", "10.0.0.3"));
    until(&mut objects, |objects| addresses(objects) == ["10.0.0.2", "10.0.0.3"]).await;
    fs::rename(folder.0.join("b.yml"), folder.0.join("b.old")).unwrap();
    until(&mut objects, |objects| addresses(objects) == ["10.0.0.2"]).await;
    fs::remove_file(folder.0.join("a.yaml")).unwrap();
    until(&mut objects, |objects| addresses(objects).is_empty()).await;
}

#[tokio::test]
async fn hidden_files_and_what_editors_leave_are_not_read() {
    let folder = Folder::new();
    for file in [".a.yaml.swp", ".a.yaml", "a.yaml~", "#a.yaml#", "4913", "a.yaml.tmp", "notes.txt"] {
        folder.write(file, &router("a", "10.0.0.1"));
    }
    fs::create_dir(folder.0.join("sub.yaml")).unwrap();
    let (objects, _task) = source::folder(folder.0.clone(), "default");
    assert_eq!(**objects.borrow(), Objects { synced: true, absent: [Kind::L34Route].into(), ..Objects::default() });
}

fn publish(folder: &Path, version: &str, files: &[(&str, String)]) {
    let data = folder.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    for (file, text) in files {
        fs::write(data.join(file), text).unwrap();
    }
    symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn the_swap_of_a_config_map_is_one_change() {
    let folder = Folder::new();
    publish(&folder.0, "1", &[("a.yaml", router("a", "10.0.0.1")), ("b.yaml", router("b", "10.0.0.1"))]);
    for file in ["a.yaml", "b.yaml"] {
        symlink(format!("..data/{file}"), folder.0.join(file)).unwrap();
    }
    let (mut objects, _task) = source::folder(folder.0.clone(), "default");
    assert_eq!(addresses(&objects.borrow_and_update()), ["10.0.0.1", "10.0.0.1"]);
    publish(&folder.0, "2", &[("a.yaml", router("a", "10.0.0.2")), ("b.yaml", router("b", "10.0.0.2"))]);
    tokio::time::timeout(Duration::from_secs(30), objects.changed()).await.unwrap().unwrap();
    assert_eq!(addresses(&objects.borrow_and_update()), ["10.0.0.2", "10.0.0.2"], "never half of it");
}

#[tokio::test]
async fn a_folder_that_vanishes_keeps_all_and_may_come_back() {
    let folder = Folder::new();
    folder.write("a.yaml", &router("a", "10.0.0.1"));
    let (mut objects, _task) = source::folder(folder.0.clone(), "default");
    let aside = folder.0.with_extension("aside");
    fs::rename(&folder.0, &aside).unwrap();
    until(&mut objects, |objects| objects.conditions.iter().any(|c| &*c.reason == "Unreadable")).await;
    assert_eq!(addresses(&objects.borrow()), ["10.0.0.1"]);
    fs::create_dir(&folder.0).unwrap();
    folder.write("a.yaml", &router("a", "10.0.0.2"));
    until(&mut objects, |objects| addresses(objects) == ["10.0.0.2"] && objects.conditions.is_empty()).await;
    folder.write("a.yaml", &router("a", "10.0.0.3"));
    until(&mut objects, |objects| addresses(objects) == ["10.0.0.3"]).await;
    fs::remove_dir_all(aside).unwrap();
}

#[tokio::test]
async fn a_folder_that_was_never_there_is_not_synced() {
    let folder = Folder::new();
    fs::remove_dir(&folder.0).unwrap();
    let (mut objects, _task) = source::folder(folder.0.clone(), "default");
    assert!(!objects.borrow().synced);
    assert!(objects.borrow().conditions.iter().any(|c| &*c.kind == "File"));
    fs::create_dir(&folder.0).unwrap();
    folder.write("a.yaml", &router("a", "10.0.0.1"));
    until(&mut objects, |objects| objects.synced && addresses(objects) == ["10.0.0.1"]).await;
}

#[tokio::test]
async fn the_watch_ends_when_nobody_listens() {
    let folder = Folder::new();
    let (objects, task) = source::folder(folder.0.clone(), "default");
    drop(objects);
    tokio::time::timeout(Duration::from_secs(30), task).await.expect("it ends").unwrap();
}

#[test]
fn the_folder_of_the_demo_has_no_fault_but_the_endpoint_that_it_shows() {
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    for fault in lint(&demo) {
        assert!(fault.message.contains("zone"), "{fault}");
    }
}

#[test]
fn lint_tells_each_fault_in_one_line_with_its_file() {
    let folder = Folder::new();
    assert_eq!(lint(&folder.0), []);
    folder.write("gateway.yaml", "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: sllb-a}, spec: {gatewayClassName: meridio-experiment/stateless-load-balancer}}");
    folder.write(
        "routers.yaml",
        &(router("a", "10.0.0.1") + "  bgp: {holdTime: 2s}\n" + &router("b", "10.0.0.2").replace("sllb-a", "sllb-b")),
    );
    folder.write("routes.yaml", "{apiVersion: meridio.experiment.gateway.api.poc/v1alpha1, kind: L34Route, metadata: {name: vip}, spec: {parentRefs: [{name: sllb-a}], backendRefs: [{name: gone}], destinationCIDRs: [20.0.0.1/32], protocols: [TCP]}}");
    folder.write("slices.yaml", "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: gone}}, addressType: IPv4, endpoints: []}");
    folder.write("broken.yaml", "a: [");
    let faults: Vec<String> = lint(&folder.0).iter().map(ToString::to_string).collect();
    let expected = [
        ("broken.yaml: ", "nothing of it is used"),
        (
            "routers.yaml: GatewayRouter default/a: ",
            "spec.bgp.holdTime: `2s`: must be 0s, or whole seconds from 3s to 65535s",
        ),
        ("routers.yaml: GatewayRouter default/b: ", "`sllb-b`: must be the name of a Gateway"),
        ("routes.yaml: L34Route default/vip: ", "spec.backendRefs[0].name: `gone`"),
        ("slices.yaml: EndpointSlice default/s: ", "`gone`: must be a Service"),
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for (fault, (start, words)) in faults.iter().zip(expected) {
        assert!(fault.starts_with(start) && fault.contains(words) && !fault.contains('\n'), "{fault}");
    }
}
