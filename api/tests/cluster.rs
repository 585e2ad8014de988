//! The source that watches a cluster, against a fake API server of a few lines: what it asks, and what it makes of answers.
//!
//! A real API server is the business of the cluster suite.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use martlet_api::objects::Kind;
use martlet_api::view::ObjectName;
use martlet_api::{Objects, source};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const OURS: &str = "/apis/meridio.experiment.gateway.api.poc/v1alpha1/namespaces/default/";

#[derive(Default)]
struct World {
    /// Lists by path; a path that is not here is forbidden.
    lists: BTreeMap<String, Vec<Value>>,
    /// Events for the watches that come, by path.
    events: BTreeMap<String, Vec<Value>>,
    /// What was asked.
    asked: BTreeSet<String>,
    /// Lists that are begun and not ended, by path.
    stuck: BTreeSet<String>,
}

struct Fake {
    world: Arc<Mutex<World>>,
    address: std::net::SocketAddr,
    server: JoinHandle<()>,
}

impl Fake {
    async fn start(world: Arc<Mutex<World>>, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = world.clone();
        let server = tokio::spawn(async move {
            // Dropped with the server: connections end when it does.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Self { world, address, server }
    }

    fn client(&self) -> kube::Client {
        let config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }
}

/// One request a connection.
async fn serve(mut stream: TcpStream, world: Arc<Mutex<World>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(octet) = stream.read_u8().await else { return };
        head.push(octet);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let watching = query.split('&').any(|pair| pair == "watch=true");
    let verb = if watching { "watch" } else { "list" };
    let (list, events) = {
        let mut world = world.lock().unwrap();
        world.asked.insert(format!("{verb} {path}"));
        let events = if watching { world.events.remove(path).unwrap_or_default() } else { Vec::new() };
        (world.lists.get(path).cloned(), events)
    };
    let (status, body) = match list {
        None => (
            "403 Forbidden",
            json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403}),
        ),
        Some(items) => ("200 OK", json!({"metadata": {"resourceVersion": "1"}, "items": items})),
    };
    if !watching || status != "200 OK" {
        while !watching && world.lock().unwrap().stuck.contains(path) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        return;
    }
    let start = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(start.as_bytes()).await.unwrap();
    for event in events {
        let line = event.to_string() + "\n";
        stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await.unwrap();
    }
    // The watch stays open until the client or the server ends.
    let _ = stream.read_u8().await;
}

fn router(name: &str, address: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": "1"}, "spec": {"address": address}})
}

fn addresses(objects: &Objects) -> Vec<String> {
    objects.routers.values().map(|router| router.spec.address.clone()).collect()
}

async fn until(objects: &mut watch::Receiver<Arc<Objects>>, what: impl FnMut(&Arc<Objects>) -> bool) -> Arc<Objects> {
    let waited = tokio::time::timeout(Duration::from_mins(1), objects.wait_for(what)).await.expect("it comes");
    waited.expect("source lives").clone()
}

#[tokio::test]
async fn objects_are_read_one_by_one_and_kept_while_the_server_is_away() {
    let path = format!("{OURS}gatewayrouters");
    let world = Arc::new(Mutex::new(World::default()));
    {
        let mut world = world.lock().unwrap();
        world.lists.insert(path.clone(), vec![router("a", &json!("10.0.0.1")), router("odd", &json!({"not": "text"}))]);
        let added = json!({"type": "ADDED", "object": router("b", &json!("10.0.0.2"))});
        world.events.insert(path.clone(), vec![added]);
    }
    let fake = Fake::start(world, "127.0.0.1:0").await;
    let kinds = [Kind::GatewayRouter, Kind::L34Route, Kind::GatewayClass].into();
    let (mut objects, _task) = source::cluster(&fake.client(), "default", &kinds);
    let seen = until(&mut objects, |objects| objects.synced && objects.routers.len() == 2).await;
    assert_eq!(addresses(&seen), ["10.0.0.1", "10.0.0.2"]);
    assert!(seen.absent.contains(&Kind::L34Route), "forbidden is absent: {:?}", seen.absent);
    assert_eq!(seen.conditions.len(), 1, "the odd one is told: {:?}", seen.conditions);

    let Fake { world, address, server } = fake;
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert_eq!(addresses(&objects.borrow()), ["10.0.0.1", "10.0.0.2"]);
    {
        // Whether the client lists again or goes on where it was: it hears of the change.
        let mut world = world.lock().unwrap();
        let changed = router("a", &json!("10.0.0.9"));
        world.events.insert(path.clone(), vec![json!({"type": "MODIFIED", "object": changed})]);
        world.lists.insert(path, vec![changed, router("b", &json!("10.0.0.2"))]);
    }
    let fake = Fake::start(world, &address.to_string()).await;
    let seen = until(&mut objects, |objects| addresses(objects).first().is_some_and(|first| first == "10.0.0.9")).await;
    assert_eq!(seen.routers.len(), 2);
    fake.server.abort();
}

#[tokio::test]
async fn nothing_is_shown_before_a_slow_list_has_ended_and_later_it_holds_up_no_other() {
    let (peers, routes) = (format!("{OURS}gatewayrouters"), format!("{OURS}l34routes"));
    let world = Arc::new(Mutex::new(World::default()));
    {
        let mut world = world.lock().unwrap();
        world.lists.insert(peers.clone(), vec![router("a", &json!("10.0.0.1"))]);
        world.lists.insert(routes.clone(), Vec::new());
        world.stuck.insert(routes.clone());
    }
    let fake = Fake::start(world, "127.0.0.1:0").await;
    let kinds = [Kind::GatewayRouter, Kind::L34Route].into();
    let (mut objects, _task) = source::cluster(&fake.client(), "default", &kinds);
    let early = tokio::time::timeout(Duration::from_millis(1500), objects.changed()).await;
    assert!(early.is_err(), "a list is missing, and this is shown: {:?}", objects.borrow());
    fake.world.lock().unwrap().stuck.clear();
    let seen = until(&mut objects, |objects| objects.synced).await;
    assert_eq!(addresses(&seen), ["10.0.0.1"]);

    let Fake { world, address, server } = fake;
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    let lost = until(&mut objects, |objects| !objects.is_reached()).await;
    assert_eq!(addresses(&lost), ["10.0.0.1"], "what is known stays in use");
    {
        let mut world = world.lock().unwrap();
        world.stuck.insert(routes);
        world.lists.insert(peers, vec![router("a", &json!("10.0.0.9"))]);
    }
    let fake = Fake::start(world, &address.to_string()).await;
    let seen = until(&mut objects, |objects| addresses(objects) == ["10.0.0.9"]).await;
    assert!(seen.is_reached(), "the server answers, one list of it does not");
    fake.server.abort();
}

#[tokio::test]
async fn secrets_are_watched_and_never_listed() {
    let path = "/api/v1/namespaces/default/secrets";
    let world = Arc::new(Mutex::new(World::default()));
    {
        let mut world = world.lock().unwrap();
        world.lists.insert(path.to_owned(), Vec::new());
        let secret = json!({"metadata": {"name": "keys", "namespace": "default"}, "data": {"md5": "c2VjcmV0"}});
        world.events.insert(path.to_owned(), vec![json!({"type": "ADDED", "object": secret})]);
    }
    let fake = Fake::start(world, "127.0.0.1:0").await;
    let (mut objects, _task) = source::cluster(&fake.client(), "default", &[Kind::Secret].into());
    let seen = until(&mut objects, |objects| !objects.secrets.is_empty()).await;
    assert_eq!(seen.secrets[&ObjectName::new("default", "keys")].data["md5"].as_ref(), b"secret");
    let asked = fake.world.lock().unwrap().asked.clone();
    let secrets: Vec<_> = asked.iter().filter(|asked| asked.ends_with("secrets")).collect();
    assert_eq!(secrets, [&format!("watch {path}")]);
    fake.server.abort();
}
