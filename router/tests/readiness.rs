//! Another data plane stands in the load balancer's place: the router's client against `deploy/readiness/example.py`.
//!
//! It proves `docs/readiness.md`: the example speaks by that page alone. Python 3 must be installed.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use martlet_api::readiness::Families;
use martlet_router::driver::Readiness as _;
use martlet_router::gate::Lb;
use martlet_router::readiness::LbClient;

const GENEROUS: Duration = Duration::from_secs(30);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the router is a folder of the repository")
}

/// The example, ended with its folder.
struct Example {
    child: Child,
    folder: PathBuf,
}

impl Example {
    fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("martlet-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the socket");
        let child = Command::new("python3")
            .arg(repository().join("deploy/readiness/example.py"))
            .arg(folder.join("lb.sock"))
            .args(["sllb-a", "20.0.0.1/32", "2000::1/128"])
            .stdout(Stdio::piped())
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("this test needs python3: {error}"));
        Self { child, folder }
    }

    fn url(&self) -> String {
        format!("unix://{}", self.folder.join("lb.sock").display())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn until(client: &mut LbClient, wanted: impl Fn(&Lb) -> bool) -> Lb {
    let wait = async {
        loop {
            let lb = client.next().await;
            if wanted(&lb) {
                return lb;
            }
        }
    };
    tokio::time::timeout(GENEROUS, wait).await.expect("the word that was waited for")
}

#[tokio::test]
async fn a_data_plane_in_another_language_says_what_is_ready_drains_and_ends() {
    let mut example = Example::start("example");
    let mut client = LbClient::new(&example.url()).unwrap();
    let Lb::Said(said) = until(&mut client, |lb| matches!(lb, Lb::Said(_))).await else { unreachable!() };
    assert_eq!((said.gateway.as_str(), said.draining), ("sllb-a", false));
    for vip in ["20.0.0.1/32", "2000::1/128"] {
        assert!(said.vips[&vip.parse().unwrap()].ready, "{vip}");
    }
    std::fs::write(example.folder.join("lb.sock.drain"), "").unwrap();
    until(&mut client, |lb| matches!(lb, Lb::Said(said) if said.draining)).await;
    example.child.kill().unwrap();
    until(&mut client, |lb| matches!(lb, Lb::Silent(_))).await;
}

#[tokio::test]
async fn a_data_plane_in_another_language_hears_the_external_connectivity() {
    let mut example = Example::start("example-hears");
    let mut client = LbClient::new(&example.url()).unwrap();
    until(&mut client, |lb| matches!(lb, Lb::Said(_))).await;
    client.tell(Families { ipv4: true, ipv6: false });
    let printed = BufReader::new(example.child.stdout.take().unwrap());
    let heard = tokio::task::spawn_blocking(move || {
        let is_told = |line: &String| line == r#"{"ipv4": true, "ipv6": false}"#;
        printed.lines().map_while(Result::ok).any(|line| is_told(&line))
    });
    assert!(tokio::time::timeout(GENEROUS, heard).await.expect("a word in time").unwrap());
}

/// Every object that the page shows is one that the code understands.
#[test]
fn the_messages_of_the_page_are_those_of_the_code() {
    let page = std::fs::read_to_string(repository().join("docs/readiness.md")).unwrap();
    let blocks: Vec<_> = page.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [readiness, connectivity] = blocks[..] else { panic!("two messages, not {}", blocks.len()) };
    let readiness: martlet_api::readiness::Readiness = serde_json::from_str(readiness).unwrap();
    assert_eq!((readiness.version, readiness.vips.len()), (martlet_api::readiness::VERSION, 2));
    let connectivity: martlet_api::readiness::Connectivity = serde_json::from_str(connectivity).unwrap();
    assert_eq!(connectivity.version, martlet_api::readiness::VERSION);
}
