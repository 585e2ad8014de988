//! Two pods, each with router and load balancer, behind one gateway (FRR), with one application and one client: what a user
//! sees of the end of one of them. The objects are the demo's.
//!
//! ```text
//!  client --- gateway 169.254.100.150 --- fabric (external) --- pod-1 169.254.100.1 --- fabric (internal) --- app
//!                                                           \-- pod-2 169.254.100.2 --/    169.111.100.11, VIP on lo
//! ```

use std::net::IpAddr;
use std::process::Command;

use anyhow::Result;

use crate::demo::folder::{Endpoint, Folder};
use crate::demo::topology::{BGP_PORT, EXTERNAL, FAMILIES, GATEWAY, INTERNAL, find_martlet, workspace};
use crate::lab::{End, Lab};
use crate::namespace::Namespace;
use crate::peer::Gateway;
use crate::peer::frr::Frr;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// A pod with its containers.
#[derive(Debug)]
pub struct Pod {
    /// Where they are.
    pub namespace: Namespace,
    /// `martlet router`.
    pub router: Process,
    /// `martlet lb`.
    pub lb: Process,
}

/// The stage.
#[derive(Debug)]
pub struct Pair {
    /// Where the client is.
    pub client: Namespace,
    /// Where the application is; the VIPs are its own.
    pub app: Namespace,
    /// The two pods.
    pub pods: [Pod; 2],
    /// The gateway.
    pub frr: Frr,
    /// The lab: dropped last.
    pub lab: Lab,
}

/// The address of pod 1 or 2 towards the gateway.
pub fn pod_address(number: u8) -> IpAddr {
    [169, 254, 100, number].into()
}

impl Pair {
    /// Builds it, with the VIPs announced by both pods. `drain_s`: how long both forward on at their end.
    ///
    /// # Errors
    /// Any part of it fails.
    pub fn build(drain_s: u64) -> Result<Self> {
        let lab = Lab::new(End::Remove)?;
        let [client, gateway, fabric, app] = ["client", "gateway", "fabric", "app"].map(|role| lab.namespace(role));
        let (client, gateway, fabric, app) = (client?, gateway?, fabric?, app?);
        let folder = workspace().join("deploy/demo");
        let objects = Folder::copy(&folder, lab.dir())?;
        objects.set(&[Endpoint::Ready, Endpoint::NotReady, Endpoint::NotReady])?;
        forward(&gateway)?;
        lab.link((&client, "eth0"), (&gateway, "cli0"))?;
        lab.link((&gateway, "ext0"), (&fabric, "gateway"))?;
        lab.link((&app, "net1"), (&fabric, "app"))?;
        let pods = [1_u8, 2].map(|number| pod(&lab, &fabric, number));
        let [one, two] = pods;
        let (one, two) = (one?, two?);
        fabric.bridge("external", &["gateway", "pod-1", "pod-2"])?;
        fabric.bridge("internal", &["app", "pod-1-int", "pod-2-int"])?;
        client.ip("addr add 200.100.0.100/24 dev eth0\nroute add default via 200.100.0.150")?;
        gateway.ip("addr add 200.100.0.150/24 dev cli0
            addr add 169.254.100.150/24 dev ext0
            addr add 100:100::150/64 dev ext0 nodad")?;
        app.ip("addr add 169.111.100.11/24 dev net1
            addr add fd00:111:100::11/64 dev net1 nodad
            addr add 20.0.0.1/32 dev lo
            addr add 2000::1/128 dev lo nodad")?;
        gateway.wait_for_links(&["ext0"])?;
        for namespace in [&one, &two] {
            namespace.wait_for_links(&[EXTERNAL, INTERNAL])?;
        }
        let frr = Frr::start(&lab, &gateway, &folder.join("frr.conf"), BGP_PORT, "LB")?;
        let start = |number: u8, namespace: Namespace| -> Result<Pod> {
            let [router, lb] = ["router", "lb"].map(|what| {
                let mut command = martlet(what, number, drain_s, objects.path(), &lab)?;
                if what == "router" {
                    command.args(["--external-interface", EXTERNAL]);
                }
                lab.spawn(&format!("{what}-{number}"), Some(&namespace), command)
            });
            Ok(Pod { router: router?, lb: lb?, namespace })
        };
        let pods = [start(1, one)?, start(2, two)?];
        let pair = Self { client, app, pods, frr, lab };
        pair.announced(&[1, 2]).map_err(|error| error.context(pair.lab.tails(10)))?;
        Ok(pair)
    }

    /// Waits until the gateway has the IPv4 VIP from these pods and no others.
    ///
    /// # Errors
    /// It has not, within [`LIMIT`].
    pub fn announced(&self, pods: &[u8]) -> Result<()> {
        let [vip, _] = FAMILIES;
        let wanted: Vec<IpAddr> = pods.iter().map(|pod| pod_address(*pod)).collect();
        until(&format!("the VIP at the gateway from {pods:?}"), 2 * LIMIT, || {
            let mut from = self.frr.learned()?.get(&vip.vip_prefix()).cloned().unwrap_or_default();
            from.sort();
            Ok(if from == wanted { Seen::Yes(()) } else { Seen::not_yet(format!("{from:?}")) })
        })
    }
}

fn martlet(what: &str, number: u8, drain_s: u64, objects: &std::path::Path, lab: &Lab) -> Result<Command> {
    let mut command = Command::new(find_martlet()?);
    let socket = format!("unix://{}", lab.dir().join(format!("lb-{number}.sock")).display());
    command.arg(what).arg("--config-dir").arg(objects).args(["--gateway", GATEWAY]);
    command.args([if what == "lb" { "--socket" } else { "--lb-socket" }, &socket]);
    command.env("MARTLET_DRAIN", drain_s.to_string());
    command.env("MARTLET_CONTROL_SOCKET", lab.dir().join(format!("{what}-{number}-control.sock")));
    Ok(command)
}

fn forward(namespace: &Namespace) -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        namespace.sysctl(&format!("net.{family}.conf.all.forwarding"), "1")?;
        namespace.sysctl(&format!("net.{family}.fib_multipath_hash_policy"), "1")?;
    }
    Ok(())
}

fn pod(lab: &Lab, fabric: &Namespace, number: u8) -> Result<Namespace> {
    let role = format!("pod-{number}");
    let namespace = lab.namespace(&role)?;
    forward(&namespace)?;
    lab.link((&namespace, EXTERNAL), (fabric, &role))?;
    lab.link((&namespace, INTERNAL), (fabric, &format!("{role}-int")))?;
    namespace.ip(&format!(
        "addr add 169.254.100.{number}/24 dev {EXTERNAL}
        addr add 100:100::{number}/64 dev {EXTERNAL} nodad
        addr add 169.111.100.{number}/24 dev {INTERNAL}
        addr add fd00:111:100::{number}/64 dev {INTERNAL} nodad"
    ))?;
    Ok(namespace)
}
