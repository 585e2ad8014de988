//! A small stage for `martlet router`: a pod and gateways on one bridge, a folder of objects, a stand-in for the load balancer.
//!
//! ```text
//!  gateway-1  10.1.0.11, fd01::11 ---+
//!  gateway-2  10.1.0.12, fd01::12 ---+--- fabric --- pod (router)  10.1.0.1, fd01::1 on ext-vlan
//!                                                     |
//!                                                  primary: where the pod's main table leads
//! ```
//!
//! It knows the product only by its command line, its folder and its sockets; it knows nothing of what is asked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use martlet_router::core::{PeerView, Status};

use crate::demo::topology::find_martlet;
use crate::lab::{End, Lab};
use crate::namespace::Namespace;
use crate::peer::frr::Frr;
use crate::peer::{Make, Peer, Setup};
use crate::process::Process;
use crate::sys::Signal;
use crate::wait::{LIMIT, Seen, until};

/// The pod's interface to the gateways.
pub const EXTERNAL: &str = "ext-vlan";
/// The pod's AS number.
pub const LOCAL_AS: u32 = 8103;
/// The AS number of every gateway.
pub const REMOTE_AS: u32 = 4_248_829_953;
/// The port on which both sides listen.
pub const PORT: u16 = 10179;
/// The Gateway object.
pub const GATEWAY: &str = "sllb-a";
/// VIPs, both families.
pub const VIPS: [&str; 4] = ["20.0.0.1", "20.0.0.2", "2000::1", "2000::2"];

/// The pod's address.
pub fn pod(ipv6: bool) -> IpAddr {
    if ipv6 { [0xfd01, 0, 0, 0, 0, 0, 0, 1].into() } else { [10, 1, 0, 1].into() }
}

/// The address of gateway 1, 2, ..
pub fn gateway(number: u8, ipv6: bool) -> IpAddr {
    let host = u16::from(number) + 0x10;
    if ipv6 { [0xfd01, 0, 0, 0, 0, 0, 0, host].into() } else { [10, 1, 0, number + 10].into() }
}

/// The default route of a family.
pub fn default_route(ipv6: bool) -> IpNet {
    let any: IpAddr = if ipv6 { [0_u16; 8].into() } else { [0_u8; 4].into() };
    // Zero is a length of both families.
    IpNet::new(any, 0).unwrap_or_else(|_| any.into())
}

/// How a gateway is set up as a peer that announces a default route.
pub fn setup(number: u8, ipv6: bool) -> Setup {
    Setup {
        address: gateway(number, ipv6),
        neighbor: pod(ipv6),
        local_as: REMOTE_AS,
        remote_as: LOCAL_AS,
        port: PORT,
        password: None,
        hold_time_s: 9,
        announce: default_route(ipv6),
        tagged: None,
        graceful: false,
        four_octet: true,
        bfd: false,
        restarted: false,
    }
}

/// A `GatewayRouter`; `spec` are more lines of its spec.
pub fn gateway_router(name: &str, address: IpAddr, spec: &str) -> String {
    let mut text = format!(
        "apiVersion: meridio.experiment.gateway.api.poc/v1alpha1\nkind: GatewayRouter\nmetadata:\n  name: {name}\n  \
         labels: {{service.kubernetes.io/service-proxy-name: {GATEWAY}}}\nspec:\n  address: \"{address}\"\n"
    );
    for line in spec.lines() {
        // Writing to a String never fails.
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// FRR with the pod as its neighbour; more lines of `router bgp`, and of the family.
pub fn frr_config(number: u8, ipv6: bool, lines: &[&str], of_family: &[&str]) -> String {
    let (neighbor, family) = (pod(ipv6), if ipv6 { "ipv6" } else { "ipv4" });
    let mut text = format!(
        "frr defaults datacenter\nbfd\n profile lab\n  receive-interval 300\n  transmit-interval 300\n  \
         detect-multiplier 3\n exit\nexit\nrouter bgp {REMOTE_AS}\n bgp router-id 10.1.0.{router_id}\n no bgp ebgp-requires-policy\n no bgp \
         default ipv4-unicast\n no bgp network import-check\n neighbor {neighbor} remote-as {LOCAL_AS}\n neighbor \
         {neighbor} port {PORT}\n neighbor {neighbor} timers 3 9\n neighbor {neighbor} timers connect 1\n",
        router_id = number + 10,
    );
    for line in lines {
        let _ = writeln!(text, " {}", line.replace("POD", &neighbor.to_string()));
    }
    let _ = writeln!(text, " address-family {family} unicast\n  neighbor {neighbor} activate");
    for line in of_family {
        let _ = writeln!(text, "  {}", line.replace("POD", &neighbor.to_string()));
    }
    text.push_str(" exit-address-family\nexit\n");
    text
}

/// The stage.
#[derive(Debug)]
pub struct Stage {
    /// Where the router is.
    pub pod: Namespace,
    /// Where the gateways are.
    pub gateways: Vec<Namespace>,
    /// Where the bridge is; its ports are `pod`, `gateway-1`, ..
    pub fabric: Namespace,
    /// Where the pod's main table leads.
    pub primary: Namespace,
    /// The router, while it is meant to run.
    pub router: Option<Process>,
    /// The stand-in for the load balancer, where there is one.
    pub lb: Option<StandIn>,
    /// More of the router's environment.
    pub environment: BTreeMap<String, String>,
    martlet: PathBuf,
    objects: PathBuf,
    /// The lab: dropped last.
    pub lab: Lab,
}

impl Stage {
    /// Makes the namespaces, and the objects of a Gateway with these VIPs.
    ///
    /// # Errors
    /// The kernel or a tool refuses.
    pub fn new(gateways: u8, vips: &[&str]) -> Result<Self> {
        let lab = Lab::new(End::Remove)?;
        let [pod, fabric, primary] = ["pod", "fabric", "primary"].map(|role| lab.namespace(role));
        let (pod, fabric, primary) = (pod?, fabric?, primary?);
        for family in ["ipv4", "ipv6"] {
            pod.sysctl(&format!("net.{family}.conf.all.forwarding"), "1")?;
            pod.sysctl(&format!("net.{family}.fib_multipath_hash_policy"), "1")?;
        }
        lab.link((&pod, EXTERNAL), (&fabric, "pod"))?;
        lab.link((&pod, "eth0"), (&primary, "eth0"))?;
        pod.ip(&format!(
            "addr add {}/24 dev {EXTERNAL}
            addr add {}/64 dev {EXTERNAL} nodad
            addr add 10.244.0.10/24 dev eth0
            addr add fd00:10:244::10/64 dev eth0 nodad
            route add default via 10.244.0.1
            route add default via fd00:10:244::1",
            self::pod(false),
            self::pod(true)
        ))?;
        primary.ip("addr add 10.244.0.1/24 dev eth0\naddr add fd00:10:244::1/64 dev eth0 nodad")?;
        let mut ports = vec!["pod".to_owned()];
        let mut spaces = Vec::new();
        for number in 1..=gateways {
            let role = format!("gateway-{number}");
            let namespace = lab.namespace(&role)?;
            lab.link((&namespace, "eth0"), (&fabric, &role))?;
            namespace.sysctl("net.ipv4.conf.all.forwarding", "1")?;
            namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
            namespace.ip(&format!(
                "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad",
                gateway(number, false),
                gateway(number, true)
            ))?;
            ports.push(role);
            spaces.push(namespace);
        }
        fabric.bridge("bridge", &ports.iter().map(String::as_str).collect::<Vec<_>>())?;
        pod.wait_for_links(&[EXTERNAL])?;
        for namespace in &spaces {
            namespace.wait_for_links(&["eth0"])?;
        }
        let objects = lab.dir().join("objects");
        fs::create_dir(&objects)?;
        let stage = Self {
            pod,
            gateways: spaces,
            fabric,
            primary,
            router: None,
            lb: None,
            environment: BTreeMap::new(),
            martlet: find_martlet()?,
            objects,
            lab,
        };
        stage.put("gateway", &gateway_object())?;
        stage.set_vips(vips)?;
        Ok(stage)
    }

    /// Where the objects are.
    pub fn objects(&self) -> &Path {
        &self.objects
    }

    /// Puts a file of objects in the folder, at once.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        let staged = self.lab.dir().join(format!("{name}.staged"));
        fs::write(&staged, text)?;
        fs::rename(&staged, self.objects.join(format!("{name}.yaml"))).with_context(|| format!("put {name}"))
    }

    /// Puts a `GatewayRouter` of that name in the folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put_router(&self, name: &str, address: IpAddr, spec: &str) -> Result<()> {
        self.put(name, &gateway_router(name, address, spec))
    }

    /// Removes a file of objects.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.objects.join(format!("{name}.yaml"))).with_context(|| format!("remove {name}"))
    }

    /// From now on the Gateway has these VIPs.
    ///
    /// # Errors
    /// The objects cannot be written.
    pub fn set_vips(&self, vips: &[&str]) -> Result<()> {
        self.put("routes", &routes(vips))
    }

    /// Lets a stand-in play the load balancer; to be called before the router is started.
    ///
    /// # Errors
    /// Its socket cannot be opened.
    pub fn with_lb(&mut self) -> Result<()> {
        self.lb = Some(StandIn::listen(&self.lab.dir().join("lb.sock"))?);
        Ok(())
    }

    /// A command of the product, aimed at this stage's router.
    pub fn martlet(&self) -> Command {
        let mut command = Command::new(&self.martlet);
        command.env("MARTLET_CONTROL_SOCKET", self.lab.dir().join("router.sock"));
        command
    }

    /// The command that starts the router with more arguments.
    pub fn router_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.martlet();
        let socket = self.lb.as_ref().map(|lb| format!("unix://{}", lb.path.display())).unwrap_or_default();
        command.arg("router").arg("--config-dir").arg(&self.objects).args(["--gateway", GATEWAY]);
        command.args(["--lb-socket", &socket, "--drain", "1"]).args(arguments).envs(&self.environment);
        command
    }

    /// Starts the router with more arguments, if it does not run.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_router(&mut self, arguments: &[&str]) -> Result<()> {
        if self.router.is_none() {
            let command = self.router_command(arguments);
            self.router = Some(self.lab.spawn("router", Some(&self.pod), command)?);
        }
        Ok(())
    }

    /// Ends the router by a signal, and waits for its end.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop_router(&mut self, signal: Signal) -> Result<()> {
        let router = self.router.take().context("the router does not run")?;
        router.signal(signal)?;
        router.wait(LIMIT).map(drop)
    }

    /// Starts gateway 1, 2, .. as this peer.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn peer(&self, number: u8, make: Make, setup: &Setup) -> Result<Box<dyn Peer + Send>> {
        make.start(&self.lab, self.namespace(number)?, setup)
    }

    /// Starts FRR at gateway 1, 2, .. with this configuration (see [`frr_config`]).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn frr(&self, number: u8, config: &str) -> Result<Frr> {
        let path = self.lab.dir().join(format!("frr-{number}.conf"));
        fs::write(&path, config)?;
        Frr::start(&self.lab, self.namespace(number)?, &path, PORT, "")
    }

    fn namespace(&self, number: u8) -> Result<&Namespace> {
        let index = usize::from(number).saturating_sub(1);
        self.gateways.get(index).with_context(|| format!("there is no gateway {number}"))
    }

    /// What a command of the product says, such as `show peers`; it must succeed.
    ///
    /// # Errors
    /// It fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self.martlet().args(arguments).output()?;
        if !output.status.success() {
            bail!("martlet {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The router's status.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Result<Status> {
        let said = self.ask(&["show", "status", "-o", "json"])?;
        serde_json::from_str(&said).with_context(|| said)
    }

    /// Waits until the router's status is as `holds` wants it.
    ///
    /// # Errors
    /// The router has ended, or it is not so within [`LIMIT`].
    pub fn until(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Result<Status> {
        let seen = until(what, LIMIT, || {
            if let Some(status) = self.router.as_ref().and_then(Process::ended) {
                bail!("the router has ended: {status}: {}", self.lab.tails(10));
            }
            Ok(match self.status() {
                Ok(status) if holds(&status) => Seen::Yes(status),
                Ok(status) => Seen::not_yet(format!("{status:#?}")),
                Err(error) => Seen::not_yet(error.to_string()),
            })
        });
        seen.map_err(|error| error.context(self.lab.tails(10)))
    }

    /// Waits until a gateway router is as `holds` wants it.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn until_peer(&self, name: &str, what: &str, holds: impl Fn(&PeerView) -> bool) -> Result<PeerView> {
        let status = self.until(&format!("{name}: {what}"), |status| status.peers.get(name).is_some_and(&holds))?;
        status.peers.get(name).cloned().with_context(|| format!("{name} is gone"))
    }

    /// Waits until a gateway router is Up.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn up(&self, name: &str) -> Result<PeerView> {
        self.until_peer(name, "Up", |peer| peer.up)
    }

    /// The next hops of the default route of a family in table 4096, in the order of `ip route`; empty without one.
    ///
    /// # Errors
    /// `ip` cannot be run.
    pub fn default_hops(&self, ipv6: bool) -> Result<Vec<IpAddr>> {
        let routes = self.pod.routes(if ipv6 { "-6" } else { "-4" }, "4096")?;
        let is_default = |route: &&serde_json::Value| {
            route.get("dst").is_some_and(|dst| dst == "default")
                && route.get("type").is_none_or(|kind| kind == "unicast")
        };
        let hop = |value: &serde_json::Value| value.get("gateway")?.as_str()?.parse::<IpAddr>().ok();
        let mut hops = Vec::new();
        for route in routes.iter().filter(is_default) {
            hops.extend(hop(route));
            hops.extend(route.get("nexthops").and_then(|all| all.as_array()).into_iter().flatten().filter_map(hop));
        }
        Ok(hops)
    }

    /// Waits until these are the next hops of the default route.
    ///
    /// # Errors
    /// They are not, within [`LIMIT`].
    pub fn until_hops(&self, ipv6: bool, wanted: &[IpAddr]) -> Result<()> {
        until(&format!("the default route over {wanted:?}"), LIMIT, || {
            let mut hops = self.default_hops(ipv6)?;
            hops.sort();
            Ok(if hops == wanted { Seen::Yes(()) } else { Seen::not_yet(format!("{hops:?}")) })
        })
    }
}

/// Waits until exactly these VIPs are what a peer was told.
///
/// # Errors
/// They are not, within [`LIMIT`].
pub fn told(peer: &dyn Peer, vips: &[&str]) -> Result<()> {
    let wanted = vips.iter().map(|vip| Ok(IpNet::from(vip.parse::<IpAddr>()?))).collect::<Result<Vec<_>>>()?;
    until(&format!("{vips:?} at {}", peer.title()), LIMIT, || {
        let heard: Vec<IpNet> = peer.received()?.into_keys().collect();
        let all = heard.len() == wanted.len() && wanted.iter().all(|vip| heard.contains(vip));
        Ok(if all { Seen::Yes(()) } else { Seen::not_yet(format!("{heard:?}")) })
    })
}

fn gateway_object() -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {GATEWAY}}}\nspec:\n  \
         gatewayClassName: meridio-experiment/stateless-load-balancer\n  listeners: []\n---\napiVersion: v1\nkind: \
         Service\nmetadata:\n  name: service-a\n  labels: {{service.kubernetes.io/service-proxy-name: {GATEWAY}}}\nspec: {{clusterIP: \
         None, selector: {{app: a}}}}\n"
    )
}

fn routes(vips: &[&str]) -> String {
    let one = |vip: &&str| {
        let name = vip.replace([':', '.'], "-").trim_matches('-').to_owned();
        let (bits, any) = if vip.contains(':') { (128, "::/0") } else { (32, "0.0.0.0/0") };
        format!(
            "apiVersion: meridio.experiment.gateway.api.poc/v1alpha1\nkind: L34Route\nmetadata: {{name: vip-{name}}}\nspec:\n  \
             parentRefs: [{{name: {GATEWAY}}}]\n  backendRefs: [{{name: service-a, port: 1}}]\n  priority: 10\n  \
             destinationCIDRs: [\"{vip}/{bits}\"]\n  sourceCIDRs: [\"{any}\"]\n  sourcePorts: [0-65535]\n  \
             destinationPorts: [\"4000\"]\n  protocols: [TCP, UDP]\n"
        )
    };
    vips.iter().map(one).collect::<Vec<_>>().join("---\n")
}

/// A stand-in for the load balancer: says over the readiness socket what it is told to.
#[derive(Debug)]
pub struct StandIn {
    path: PathBuf,
    said: Arc<Mutex<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    line: String,
    routers: Vec<UnixStream>,
}

impl Said {
    fn tell(&mut self) {
        let line = self.line.clone();
        self.routers.retain_mut(|router| router.write_all(line.as_bytes()).is_ok());
    }
}

impl StandIn {
    fn listen(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        let said = Arc::new(Mutex::new(Said { line: line(&[], false), routers: Vec::new() }));
        let weak = Arc::downgrade(&said);
        std::thread::spawn(move || accept(&listener, &weak));
        let weak = Arc::downgrade(&said);
        std::thread::spawn(move || {
            while let Some(said) = weak.upgrade() {
                said.lock().unwrap_or_else(PoisonError::into_inner).tell();
                drop(said);
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Ok(Self { path: path.to_owned(), said })
    }

    /// Says of these VIPs whether they can be forwarded, at once and from now on.
    pub fn say(&self, vips: &[(&str, bool)]) {
        self.change(line(vips, false));
    }

    /// Says that it is about to end, still forwarding to these VIPs.
    pub fn drain(&self, vips: &[&str]) {
        self.change(line(&vips.iter().map(|vip| (*vip, true)).collect::<Vec<_>>(), true));
    }

    fn change(&self, line: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.line = line;
        said.tell();
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Wakes the thread that accepts: it sees that nobody is left to speak for.
        self.said = Arc::default();
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, said: &Weak<Mutex<Said>>) {
    for stream in listener.incoming() {
        let (Some(said), Ok(mut stream)) = (said.upgrade(), stream) else { return };
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let line = said.line.clone();
        if stream.write_all(line.as_bytes()).is_ok() {
            said.routers.push(stream);
        }
    }
}

fn line(vips: &[(&str, bool)], draining: bool) -> String {
    let vips: serde_json::Map<String, serde_json::Value> = vips
        .iter()
        .map(|(vip, ready)| {
            let bits = if vip.contains(':') { 128 } else { 32 };
            (format!("{vip}/{bits}"), serde_json::json!({"ready": ready, "reason": ""}))
        })
        .collect();
    format!("{}\n", serde_json::json!({"version": 1, "gateway": GATEWAY, "draining": draining, "vips": vips}))
}
