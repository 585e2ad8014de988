//! A router at the other end of the socket.

use std::time::Duration;

use martlet_api::readiness::VipReadiness;

use super::*;

/// A folder of its own for a socket, gone with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("martlet-lb-{}-{name}", std::process::id())))
    }

    fn url(&self) -> String {
        format!("unix://{}/lb.sock", self.0.display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn value(ready: bool) -> Readiness {
    let vip = VipReadiness { ready, reason: String::new() };
    let vips = [("20.0.0.1/32".parse().unwrap(), vip)].into();
    Readiness { version: VERSION, gateway: "sllb-a".into(), draining: false, vips }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s")
}

async fn line(reader: &mut BufReader<UnixStream>) -> Option<Readiness> {
    let mut text = String::new();
    match soon(reader.read_line(&mut text)).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(serde_json::from_str(&text).unwrap()),
    }
}

#[tokio::test]
async fn a_router_hears_the_last_value_and_every_one_after_it() {
    let place = Place::new("hears");
    let url = place.url();
    let mut server = Server::start(&url).await.unwrap();
    server.publish(&value(false));
    let mut router = BufReader::new(UnixStream::connect(path_of(&url).unwrap()).await.unwrap());
    assert_eq!(line(&mut router).await, Some(value(false)));
    server.publish(&value(true));
    assert_eq!(line(&mut router).await, Some(value(true)));
    server.publish(&value(true));
    assert_eq!(line(&mut router).await, Some(value(true)), "a beat repeats the value");
    let path = path_of(&url).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    drop(server);
    assert_eq!(line(&mut router).await, None, "an ended load balancer closes");
    assert!(!path.exists());
}

#[tokio::test]
async fn the_router_tells_its_connectivity_in_pieces_too() {
    let place = Place::new("tells");
    let url = place.url();
    let mut server = Server::start(&url).await.unwrap();
    let mut heard = server.connectivity();
    let mut router = UnixStream::connect(path_of(&url).unwrap()).await.unwrap();
    router.write_all(br#"{"version":1,"connec"#).await.unwrap();
    router.flush().await.unwrap();
    // A value that is sent meanwhile must not lose what was read.
    server.publish(&value(true));
    let mut router = BufReader::new(router);
    assert!(line(&mut router).await.is_some());
    router.write_all(b"tivity\":{\"ipv4\":true,\"ipv6\":false}}\n").await.unwrap();
    soon(heard.wait_for(|families| families.ipv4)).await.unwrap();
    drop(router);
    soon(heard.wait_for(|families| !families.ipv4)).await.unwrap();
}

#[tokio::test]
async fn a_bad_line_ends_the_connection() {
    let place = Place::new("bad");
    let url = place.url();
    let _server = Server::start(&url).await.unwrap();
    let version_2 = br#"{"version":2,"connectivity":{"ipv4":true,"ipv6":true}}"#;
    for bad in [&b"hello"[..], version_2, &vec![b' '; MAX_LINE + 10]] {
        let mut router = BufReader::new(UnixStream::connect(path_of(&url).unwrap()).await.unwrap());
        // It may close before it has read all of it.
        let _ = router.write_all(&[bad, b"\n"].concat()).await;
        assert_eq!(line(&mut router).await, None);
    }
}

#[tokio::test]
async fn a_socket_of_the_dead_is_replaced_and_one_of_the_living_is_not() {
    let place = Place::new("taken");
    let url = place.url();
    let path = path_of(&url).unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let living = Server::start(&url).await.unwrap();
    assert!(Server::start(&url).await.is_err());
    assert!(is_served(&path).await);
    drop(living);
    let error = path_of("/var/lib/lb.sock").unwrap_err().to_string();
    assert!(error.contains("unix:///"), "{error}");
}

#[tokio::test]
async fn a_router_that_connects_while_nobody_vouches_hears_nothing() {
    let place = Place::new("silent");
    let url = place.url();
    let mut server = Server::start(&url).await.unwrap();
    server.publish(&value(true));
    server.fall_silent();
    let mut router = BufReader::new(UnixStream::connect(path_of(&url).unwrap()).await.unwrap());
    // Once it is heard, the old value would have been sent.
    let mut heard = server.connectivity();
    let ours = Connectivity { version: VERSION, connectivity: Families { ipv4: true, ipv6: false } };
    router.write_all(format!("{}\n", serde_json::to_string(&ours).unwrap()).as_bytes()).await.unwrap();
    soon(heard.changed()).await.unwrap();
    server.publish(&value(false));
    assert_eq!(line(&mut router).await, Some(value(false)));
}
