//! The namespaces of the demo, their links, addresses and programs.
//!
//! ```text
//!                       fabric: bridge vlan100                         fabric: bridge internal
//!  client ------ gateway --------[cut here]-------- pod (router, lb) -------+------- app-1, app-2, app-3
//!  200.100.0.100  FRR  169.254.100.150     169.254.100.1 | 169.111.100.1      169.111.100.11 .. 13, the VIPs on lo
//!                                                       |
//!                                                    primary: where the pod's main table leads, and no VIP may
//! ```

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use super::folder::Folder;
use crate::capture::Capture;
use crate::lab::{End, Lab};
use crate::monitor::RouteMonitor;
use crate::namespace::Namespace;
use crate::peer::frr::Frr;
use crate::process::Process;
use crate::sys::Signal;
use crate::wait::{LIMIT, Seen, until};

/// The port on which both sides listen for BGP.
pub const BGP_PORT: u16 = 10179;
/// The Gateway object.
pub const GATEWAY: &str = "sllb-a";
/// The pod's interface to the outside.
pub const EXTERNAL: &str = "vlan-100";
/// The pod's interface to the applications.
pub const INTERNAL: &str = "net1";
/// The port of the fabric that leads to the gateway.
pub const GATEWAY_PORT: &str = "gateway";
/// Where VIP egress is caught.
pub const EGRESS_PORT: u16 = 5000;
/// Ports of the VIPs.
pub const PORTS: [u16; 2] = [4000, 4001];
/// How many applications there are.
pub const APPLICATIONS: u16 = 3;

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// For a human.
    pub name: &'static str,
    /// As `ip` has it.
    pub flag: &'static str,
    /// The VIP.
    pub vip: IpAddr,
    /// The pod's address outside.
    pub pod: IpAddr,
    /// The gateway's address towards the pod.
    pub gateway: IpAddr,
    /// The client's address.
    pub client: IpAddr,
    /// An address that is reached by the default route only.
    pub internet: IpAddr,
    /// The default route.
    pub default: IpNet,
}

impl Family {
    /// The VIP as a prefix.
    pub fn vip_prefix(&self) -> IpNet {
        self.vip.into()
    }

    /// A port of the VIP.
    pub const fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip, port)
    }

    /// Where VIP egress is caught.
    pub const fn sink(&self) -> SocketAddr {
        SocketAddr::new(self.internet, EGRESS_PORT)
    }
}

/// Both families.
pub const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        flag: "-4",
        vip: IpAddr::V4(Ipv4Addr::new(20, 0, 0, 1)),
        pod: IpAddr::V4(Ipv4Addr::new(169, 254, 100, 1)),
        gateway: IpAddr::V4(Ipv4Addr::new(169, 254, 100, 150)),
        client: IpAddr::V4(Ipv4Addr::new(200, 100, 0, 100)),
        internet: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        default: IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    },
    Family {
        name: "IPv6",
        flag: "-6",
        vip: IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1)),
        pod: IpAddr::V6(Ipv6Addr::new(0x100, 0x100, 0, 0, 0, 0, 0, 1)),
        gateway: IpAddr::V6(Ipv6Addr::new(0x100, 0x100, 0, 0, 0, 0, 0, 0x150)),
        client: IpAddr::V6(Ipv6Addr::new(0x200, 0x100, 0, 0, 0, 0, 0, 0x100)),
        internet: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1)),
        default: IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    },
];

/// What the demo is made of.
#[derive(Debug)]
pub struct World {
    /// Where the client is.
    pub client: Namespace,
    /// Where FRR is.
    pub gateway: Namespace,
    /// Where the bridges are.
    pub fabric: Namespace,
    /// Where router and lb are.
    pub pod: Namespace,
    /// Where the pod's main table leads.
    pub primary: Namespace,
    /// Where the applications are.
    pub applications: Vec<Namespace>,
    /// The gateway router.
    pub frr: Frr,
    /// BGP and BFD at the gateway's interface.
    pub capture: Capture,
    /// The gateway's routes.
    pub gateway_routes: RouteMonitor,
    /// The pod's routes.
    pub pod_routes: RouteMonitor,
    /// The objects.
    pub folder: Folder,
    martlet: PathBuf,
    /// More arguments of `martlet router`.
    pub router_arguments: Vec<String>,
    /// The router, while it is meant to run.
    pub router: Option<Process>,
    /// The load balancer, while it is meant to run.
    pub lb: Option<Process>,
    /// The lab.
    pub lab: Arc<Lab>,
}

impl World {
    /// Builds everything but router and lb.
    ///
    /// # Errors
    /// Any part of it fails.
    pub fn build(folder: &Path, martlet: &Path, end: End) -> Result<Self> {
        let lab = Arc::new(Lab::new(end)?);
        Self::build_in(&lab, folder, martlet).map_err(|error| {
            lab.mark_failed();
            let tails = lab.tails(10);
            error.context(format!("the stage of the demo cannot be built\n{tails}"))
        })
    }

    fn build_in(lab: &Arc<Lab>, folder: &Path, martlet: &Path) -> Result<Self> {
        let Names { client, gateway, fabric, pod, primary, applications } = Names::make(lab)?;
        let objects = Folder::copy(folder, lab.dir())?;
        for (number, application) in applications.iter().enumerate() {
            serve(lab, application, &format!("app-{}", number + 1))?;
        }
        let frr = Frr::start(lab, &gateway, &folder.join("frr.conf"), BGP_PORT, "LB")?;
        let filter = format!("tcp port {BGP_PORT} or udp port 3784");
        let capture = Capture::start(lab, &gateway, "ext0", BGP_PORT, &filter)?;
        let gateway_routes = RouteMonitor::start(lab, &gateway)?;
        let pod_routes = RouteMonitor::start(lab, &pod)?;
        #[rustfmt::skip]
        let world = Self {
            client, gateway, fabric, pod, primary, applications, frr, capture, gateway_routes, pod_routes,
            folder: objects, martlet: martlet.to_owned(), router_arguments: Vec::new(), router: None, lb: None,
            lab: Arc::clone(lab),
        };
        Ok(world)
    }

    fn martlet(&self, what: &str) -> Command {
        let mut command = Command::new(&self.martlet);
        command.arg(what).arg("--config-dir").arg(self.folder.path()).args(["--gateway", GATEWAY]);
        // Two seconds are enough to see that what still comes is forwarded.
        command.env("MARTLET_DRAIN", "2");
        // Two labs share the file system: each keeps its control sockets in its own folder.
        command.env("MARTLET_CONTROL_SOCKET", self.lab.dir().join(format!("{what}-control.sock")));
        command
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.lab.dir().join("lb.sock").display())
    }

    /// Starts the load balancer, if it does not run.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_lb(&mut self) -> Result<()> {
        if self.lb.is_none() {
            let mut command = self.martlet("lb");
            command.args(["--socket", &self.socket()]);
            self.lb = Some(self.lab.spawn("lb", Some(&self.pod), command)?);
        }
        Ok(())
    }

    /// Starts the router, if it does not run.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_router(&mut self) -> Result<()> {
        if self.router.is_none() {
            let mut command = self.martlet("router");
            command
                .args(["--external-interface", EXTERNAL, "--lb-socket", &self.socket()])
                .args(&self.router_arguments);
            self.router = Some(self.lab.spawn("router", Some(&self.pod), command)?);
        }
        Ok(())
    }

    /// Router and lb run, if they are meant to.
    ///
    /// # Errors
    /// One has ended: how, and its last words.
    pub fn check_alive(&self) -> Result<()> {
        for process in self.router.iter().chain(&self.lb) {
            if let Some(status) = process.ended() {
                bail!("martlet {} has ended: {status}: {}", process.name(), process.tail(3).trim());
            }
        }
        Ok(())
    }

    /// Ends a process at once, and waits until it is gone.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&self, process: &Process) -> Result<()> {
        process.signal(Signal::Kill)?;
        process.wait(LIMIT).map(drop)
    }
}

struct Names {
    client: Namespace,
    gateway: Namespace,
    fabric: Namespace,
    pod: Namespace,
    primary: Namespace,
    applications: Vec<Namespace>,
}

impl Names {
    fn make(lab: &Lab) -> Result<Self> {
        let [client, gateway, fabric, pod, primary] =
            ["client", "gateway", "fabric", "pod", "primary"].map(|role| lab.namespace(role));
        let (client, gateway, fabric, pod, primary) = (client?, gateway?, fabric?, pod?, primary?);
        sysctls(&gateway, &pod)?;
        lab.link((&client, "eth0"), (&gateway, "cli0"))?;
        lab.link((&gateway, "ext0"), (&fabric, GATEWAY_PORT))?;
        lab.link((&pod, EXTERNAL), (&fabric, "pod"))?;
        lab.link((&pod, INTERNAL), (&fabric, "pod-int"))?;
        lab.link((&pod, "eth0"), (&primary, "eth0"))?;
        fabric.bridge("vlan100", &[GATEWAY_PORT, "pod"])?;
        fabric.bridge("internal", &["pod-int"])?;
        client.ip("addr add 200.100.0.100/24 dev eth0
            addr add 200:100::100/64 dev eth0 nodad
            addr add 198.51.100.1/32 dev lo
            addr add 2001:db8:51::1/128 dev lo nodad
            route add default via 200.100.0.150
            route add default via 200:100::150")?;
        gateway.ip("addr add 200.100.0.150/24 dev cli0
            addr add 200:100::150/64 dev cli0 nodad
            addr add 169.254.100.150/24 dev ext0
            addr add 100:100::150/64 dev ext0 nodad
            route add 198.51.100.1/32 via 200.100.0.100
            route add 2001:db8:51::1/128 via 200:100::100")?;
        pod.ip("addr add 169.254.100.1/24 dev vlan-100
            addr add 100:100::1/64 dev vlan-100 nodad
            addr add 169.111.100.1/24 dev net1
            addr add fd00:111:100::1/64 dev net1 nodad
            addr add 10.244.0.10/24 dev eth0
            addr add fd00:10:244::10/64 dev eth0 nodad
            route add default via 10.244.0.1
            route add default via fd00:10:244::1")?;
        primary.ip("addr add 10.244.0.1/24 dev eth0
            addr add fd00:10:244::1/64 dev eth0 nodad")?;
        let applications = (1..=APPLICATIONS).map(|number| application(lab, &fabric, number)).collect::<Result<_>>()?;
        // Who starts before its link has a link-local address may have to wait for it much longer.
        gateway.wait_for_links(&["cli0", "ext0"])?;
        pod.wait_for_links(&[EXTERNAL, INTERNAL, "eth0"])?;
        Ok(Self { client, gateway, fabric, pod, primary, applications })
    }
}

/// What the seed asks of the pod's namespace; the gateway forwards too.
fn sysctls(gateway: &Namespace, pod: &Namespace) -> Result<()> {
    for namespace in [gateway, pod] {
        namespace.sysctl("net.ipv4.conf.all.forwarding", "1")?;
        namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        namespace.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
        namespace.sysctl("net.ipv6.fib_multipath_hash_policy", "1")?;
    }
    pod.sysctl("net.ipv4.fwmark_reflect", "1")?;
    pod.sysctl("net.ipv6.fwmark_reflect", "1")?;
    pod.sysctl("net.ipv4.ip_local_port_range", "49152 65535")
}

/// An application's namespace: the VIPs are its own, what it sends from them goes to the pod.
fn application(lab: &Lab, fabric: &Namespace, number: u16) -> Result<Namespace> {
    let role = format!("app-{number}");
    let namespace = lab.namespace(&role)?;
    lab.link((&namespace, "net1"), (fabric, &role))?;
    fabric.ip(&format!("link set {role} master internal"))?;
    namespace.ip(&format!(
        "addr add 169.111.100.1{number}/24 dev net1
        addr add fd00:111:100::1{number}/64 dev net1 nodad
        addr add 20.0.0.1/32 dev lo
        addr add 2000::1/128 dev lo nodad
        rule add from 20.0.0.1 lookup 5000
        route add default via 169.111.100.1 table 5000"
    ))?;
    namespace.ip6(
        "rule add from 2000::1 lookup 5000
        route add default via fd00:111:100::1 table 5000",
    )?;
    Ok(namespace)
}

/// Starts the application in its namespace, and waits until it serves.
fn serve(lab: &Lab, namespace: &Namespace, name: &str) -> Result<Process> {
    let program = app_program()?;
    let mut command = Command::new(program);
    command.args(["app", "--name", name]);
    for family in FAMILIES {
        command.args(["--vip", &family.vip.to_string()]);
    }
    for port in PORTS {
        command.args(["--tcp", &port.to_string(), "--udp", &port.to_string()]);
    }
    let process = lab.spawn(name, Some(namespace), command)?;
    until(&format!("{name} to serve"), LIMIT, || {
        Ok(if process.log().contains("serves") { Seen::Yes(()) } else { Seen::not_yet(process.tail(3)) })
    })?;
    Ok(process)
}

/// The program that plays the application: `martlet-lab` itself, or, in a test, the one beside it.
fn app_program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let name = "martlet-lab";
    if own.file_name().is_some_and(|file| file == name) {
        return Ok(own);
    }
    let near = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.exists());
    near.with_context(|| format!("no {name} beside {}", own.display()))
}

/// Where the product is: `$MARTLET_BIN`, else `target/lab/martlet`, else beside this program.
///
/// # Errors
/// It is nowhere.
pub fn find_martlet() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MARTLET_BIN").filter(|path| !path.is_empty()) {
        return fs::canonicalize(&path).with_context(|| format!("MARTLET_BIN={}", Path::new(&path).display()));
    }
    let near = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("martlet")));
    let built = workspace().join("target/lab/martlet");
    let found = [Some(built.clone()), near].into_iter().flatten().find(|path| path.is_file());
    found.with_context(|| {
        let built = built.display();
        format!("no {built}: run `cargo build --profile lab -p martlet-cli`, or set MARTLET_BIN")
    })
}

/// The folder of the workspace that this program was built in.
pub fn workspace() -> PathBuf {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.parent().unwrap_or(lab).to_owned()
}
