//! A client, a load balancer and applications in network namespaces of their own.
//!
//! ```text
//!  client 192.168.1.1 --- 192.168.1.254 lb 10.9.0.254 --- bridge --- application n 10.9.0.1n, VIP 20.0.0.1 on lo
//!         fd01::1         fd01::fe         fd09::fe                                fd09::1n, VIP 2000::1
//! ```

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use martlet_api::readiness::Readiness;
use martlet_api::view::ObjectName;
use martlet_lb::offload::Engine;
use martlet_lb::run::{Options, run_until};

use crate::sys;

pub const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(20, 0, 0, 1));
pub const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1));
/// How long a condition may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The namespaces; gone when this is dropped.
pub struct Lab {
    name: String,
    pub folder: PathBuf,
    applications: u8,
}

/// How packets get to their endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a queue and a routing table each.
    Queue,
    /// By a queue, past the routing tables.
    Direct,
    /// By nftables.
    Kernel,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Queue, Self::Direct, Self::Kernel];

    /// As the flags would.
    pub fn choose(self, options: &mut Options) {
        match self {
            Self::Queue => {}
            Self::Direct => options.direct_from = 1,
            Self::Kernel => options.engine = Engine::Kernel,
        }
    }

    /// For the name of a lab.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Queue => "q",
            Self::Direct => "d",
            Self::Kernel => "k",
        }
    }
}

/// A load balancer that runs in the lab.
pub struct Running {
    end: Option<tokio::sync::oneshot::Sender<()>>,
    crash: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `work` in a thread of its own in a namespace.
pub fn within<T: Send + 'static>(namespace: String, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(move || {
        sys::enter(&namespace).expect("namespace");
        work()
    })
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A socket with this address, as soon as nobody has it: a program that another test starts holds what this process had open until it is
/// loaded, the socket of the last question with it.
pub fn bound(address: impl ToSocketAddrs) -> UdpSocket {
    let mut socket = None;
    eventually("the port is free", || {
        socket = UdpSocket::bind(&address).ok();
        socket.is_some()
    });
    socket.expect("bound")
}

/// A lab whose applications are all ready, and a load balancer that says so.
pub fn serving(test: &str, applications: u8, change: impl FnOnce(&mut Options)) -> (Lab, Running) {
    let lab = Lab::new(test, applications);
    lab.configure(&(1..=applications).collect());
    let lb = lab.start(change);
    lab.wait_ready(true);
    (lab, lb)
}

/// The same, whose packets go that way.
pub fn serving_by(way: Way, test: &str, applications: u8) -> (Lab, Running) {
    let (lab, lb) = serving(&format!("{test}-{}", way.letter()), applications, |options| way.choose(options));
    lab.wait_for_way(way);
    (lab, lb)
}

impl Lab {
    /// Makes the namespaces and starts the applications, each of which answers with its number. The bridge has an address of
    /// its own: else it takes the lowest of its ports', and who leaves it may take the address along that all others know.
    pub fn new(test: &str, applications: u8) -> Self {
        let uid = Command::new("id").arg("-u").output().expect("id").stdout;
        assert_eq!(uid, b"0\n", "these tests make network namespaces: run them as root");
        let name = format!("lb-{test}-{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(folder.join("config")).expect("folder");
        let lab = Self { name, folder, applications };
        let (client, lb) = (lab.client(), lab.lb());
        let quiet = "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                     net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
                     net.ipv6.conf.default.dad_transmits=0";
        shell(&format!(
            "for n in {client} {lb}; do ip netns add $n; ip netns exec $n {quiet}; ip -n $n link set lo up; done
             ip netns exec {lb} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip link add ext netns {client} type veth peer name ext netns {lb}
             ip -n {client} addr add 192.168.1.1/24 dev ext; ip -n {client} addr add fd01::1/64 dev ext nodad
             ip -n {lb} addr add 192.168.1.254/24 dev ext; ip -n {lb} addr add fd01::fe/64 dev ext nodad
             ip -n {lb} link add int address 02:00:00:00:00:fe type bridge
             ip -n {lb} addr add 10.9.0.254/24 dev int; ip -n {lb} addr add fd09::fe/64 dev int nodad
             ip -n {client} link set ext up; ip -n {lb} link set ext up; ip -n {lb} link set int up
             ip -n {client} route add default via 192.168.1.254; ip -n {client} route add default via fd01::fe"
        ));
        for number in 1..=applications {
            let app = lab.application(number);
            shell(&format!(
                "ip netns add {app}; ip netns exec {app} {quiet}; ip -n {app} link set lo up
                 ip link add eth0 netns {app} type veth peer name p{number} netns {lb}
                 ip -n {lb} link set p{number} master int up
                 ip -n {app} addr add 10.9.0.1{number}/24 dev eth0; ip -n {app} addr add fd09::1{number}/64 dev eth0 nodad
                 ip -n {app} link set eth0 up
                 ip -n {app} addr add {VIP4}/32 dev lo; ip -n {app} addr add {VIP6}/128 dev lo nodad
                 ip -n {app} route add default via 10.9.0.254; ip -n {app} route add default via fd09::fe"
            ));
            for vip in [VIP4, VIP6] {
                for port in [4000, 8080] {
                    within(app.clone(), move || serve((vip, port).into(), number)).join().expect("application");
                }
            }
        }
        lab
    }

    pub fn client(&self) -> String {
        format!("{}-c", self.name)
    }

    pub fn lb(&self) -> String {
        format!("{}-l", self.name)
    }

    pub fn application(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    /// What a command in a namespace prints, and whether it succeeded.
    pub fn run(&self, namespace: &str, command: &str) -> (bool, String) {
        assert!(namespace.starts_with(&self.name), "only our own");
        let output = Command::new("ip")
            .args(["netns", "exec", namespace])
            .args(command.split_whitespace())
            .output()
            .expect("ip netns exec");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    }

    /// Writes the objects: these applications are ready.
    pub fn configure(&self, ready: &BTreeSet<u8>) {
        let slice = |family: &str, address: &dyn Fn(u8) -> String| {
            let mut endpoints = String::new();
            for number in 1..=self.applications {
                let (address, ready) = (address(number), ready.contains(&number));
                let name = format!("targetRef: {{kind: Pod, name: app-{number}}}");
                let conditions = format!("conditions: {{ready: {ready}}}");
                for line in [format!("- addresses: [\"{address}\"]"), conditions, format!("zone: \"{number}\""), name] {
                    let indent = if line.starts_with('-') { "" } else { "  " };
                    endpoints.extend([indent, &line, "\n"]);
                }
            }
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: a-{}\n  \
                 labels: {{kubernetes.io/service-name: a}}\naddressType: {family}\nendpoints:\n{endpoints}",
                family.to_lowercase()
            )
        };
        let text = [
            GATEWAY.to_owned(),
            slice("IPv4", &|number| format!("10.9.0.1{number}")),
            slice("IPv6", &|number| format!("fd09::1{number}")),
        ]
        .concat();
        let path = self.folder.join("config/objects.yaml");
        // Written aside and moved, as a careful user does.
        std::fs::write(self.folder.join("new"), text).expect("write");
        std::fs::rename(self.folder.join("new"), path).expect("rename");
    }

    /// Starts a load balancer.
    pub fn start(&self, change: impl FnOnce(&mut Options)) -> Running {
        let mut options = Options {
            config_dir: Some(self.folder.join("config")),
            gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
            socket: format!("unix://{}/lb.sock", self.folder.display()),
            drain: Duration::from_secs(2),
            control_socket: Some(self.folder.join("control.sock")),
            ..Options::default()
        };
        change(&mut options);
        // Seen with the test's name when it fails.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let (end, ended) = tokio::sync::oneshot::channel();
        let (crash, crashed) = tokio::sync::oneshot::channel::<()>();
        let thread = within(self.lb(), move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let running = run_until(options, async {
                // A dropped sender must not look like a signal.
                if ended.await.is_err() {
                    std::future::pending::<()>().await;
                }
            });
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    Ok(()) = crashed => Ok(()),
                    result = running => result,
                }
            })
        });
        Running { end: Some(end), crash: Some(crash), thread: Some(thread) }
    }

    /// What the router hears, one value after the other.
    pub fn router(&self) -> impl Iterator<Item = Readiness> + use<> {
        let path = self.folder.join("lb.sock");
        let mut stream = None;
        eventually("the load balancer listens", || {
            stream = UnixStream::connect(&path).ok();
            stream.is_some()
        });
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        BufReader::new(stream).lines().map_while(|line| serde_json::from_str(&line.ok()?).ok())
    }

    /// Waits until the router hears that all VIPs are ready, or that none is.
    pub fn wait_ready(&self, ready: bool) {
        let is = |value: &Readiness| value.vips.len() == 2 && value.vips.values().all(|vip| vip.ready == ready);
        let mut last = None;
        let found = self.router().take(100).any(|value| {
            let found = is(&value);
            last = Some(value);
            found
        });
        assert!(found, "{last:?}");
    }

    /// Waits until packets to all applications can go that way.
    pub fn wait_for_way(&self, way: Way) {
        let all = u32::from(self.applications) * 2;
        eventually("all endpoints are reached directly", || {
            way != Way::Direct || crate::state(&self.folder.join("control.sock")).direct_addresses == all
        });
    }

    /// Adds a file of objects.
    pub fn add(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join("new"), text).expect("write");
        std::fs::rename(self.folder.join("new"), self.folder.join("config").join(name)).expect("rename");
    }

    /// In the client: `count` connections to a VIP, each with the application that answered.
    pub fn connect(&self, vip: IpAddr, count: usize) -> Vec<Connection> {
        self.connect_to((vip, 4000).into(), count)
    }

    /// The same to any port.
    pub fn connect_to(&self, to: SocketAddr, count: usize) -> Vec<Connection> {
        let open = move || (0..count).map(|_| Connection::open(to)).collect();
        within(self.client(), open).join().expect("every connection is answered")
    }

    /// In the client: `count` exchanges over UDP, each from another port; who answered.
    pub fn exchange(&self, vip: IpAddr, count: usize) -> Vec<u8> {
        let ask = move || {
            let sockets: Vec<UdpSocket> = (0..count)
                .map(|_| {
                    let any: IpAddr =
                        if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                    let socket = UdpSocket::bind((any, 0)).expect("bind");
                    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
                    socket.connect((vip, 4000)).expect("connect");
                    socket.send(b"who?").expect("send");
                    socket
                })
                .collect();
            let answer = |socket: &UdpSocket| {
                let mut octet = [0];
                socket.recv(&mut octet).expect("every datagram is answered");
                octet[0]
            };
            sockets.iter().map(answer).collect()
        };
        within(self.client(), ask).join().expect("client")
    }

    /// In the client: one datagram from a port; who answered within a moment.
    pub fn ask_from(&self, vip: IpAddr, port: u16) -> Option<u8> {
        self.ask_at((vip, 4000).into(), port)
    }

    /// In the client, until told to end: datagrams from these ports in turn, so many a second.
    pub fn flood(&self, vip: IpAddr, ports: Vec<u16>, rate: u32) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            let open = |port: u16| {
                let socket = bound((crate::craft::client(vip), port));
                socket.connect((vip, 4000)).expect("connect");
                socket
            };
            let sockets: Vec<UdpSocket> = ports.into_iter().map(open).collect();
            let (start, mut sent) = (Instant::now(), 0_u64);
            let due = || u64::try_from(start.elapsed().as_micros()).expect("short") * u64::from(rate) / 1_000_000;
            for socket in sockets.iter().cycle() {
                while sent >= due() {
                    std::thread::sleep(Duration::from_micros(200));
                }
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                socket.send(b"who?").expect("send");
                sent += 1;
            }
            sent
        };
        Flood { stop, thread: within(self.client(), work) }
    }

    /// Datagrams that came to the applications, also those that found no room in their sockets.
    pub fn arrived(&self) -> u64 {
        let of = |number| {
            let (_, text) = self.run(&self.application(number), "cat /proc/net/snmp");
            let line = text.lines().rfind(|line| line.starts_with("Udp:")).expect("counters");
            // Received, without a socket, in error (which is: without room).
            line.split_whitespace().skip(1).take(3).map(|count| count.parse::<u64>().expect("a number")).sum::<u64>()
        };
        (1..=self.applications).map(of).sum()
    }

    /// The same to any port.
    pub fn ask_at(&self, to: SocketAddr, port: u16) -> Option<u8> {
        let ask = move || {
            let socket = bound((crate::craft::client(to.ip()), port));
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
            socket.connect(to).expect("connect");
            let mut octet = [0];
            // No route to the host, or no answer: the same to us.
            socket.send(b"who?").and_then(|_| socket.recv(&mut octet)).ok()?;
            Some(octet[0])
        };
        within(self.client(), ask).join().expect("client")
    }
}

/// Datagrams that are being sent.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Flood {
    /// How many were sent.
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("sender")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut names = vec![self.client(), self.lb()];
        names.extend((1..=self.applications).map(|number| self.application(number)));
        for name in names {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Running {
    /// Ends it as a signal does, and waits for the end.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.say_end();
        self.wait()
    }

    pub fn say_end(&mut self) {
        self.end.take().expect("once").send(()).expect("it runs");
    }

    /// Ends it as a kill does: everything is left as it is.
    pub fn crash(mut self) {
        self.crash.take().expect("once").send(()).expect("it runs");
        self.wait().expect("crashed");
    }

    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.thread.take().expect("once").join().expect("no panic")
    }
}

/// A TCP connection that asks who is there.
pub struct Connection {
    stream: BufReader<TcpStream>,
    pub application: u8,
    pub local: SocketAddr,
}

impl Connection {
    fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let local = stream.local_addr().expect("address");
        let mut connection = Self { stream: BufReader::new(stream), application: 0, local };
        connection.application = connection.ask().expect("an answer");
        connection
    }

    /// The same with a line of many octets.
    pub fn ask_long(&mut self, octets: usize) -> Option<u8> {
        self.stream.get_mut().write_all(&vec![b'x'; octets]).ok()?;
        self.ask()
    }

    /// Who answers now; `None`: the connection is broken.
    pub fn ask(&mut self) -> Option<u8> {
        self.stream.get_mut().write_all(b"who?\n").ok()?;
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        line.trim().parse().ok()
    }
}

/// Answers every line and every datagram with a number, as long as the process lives.
fn serve(address: SocketAddr, number: u8) {
    let listener = TcpListener::bind(address).expect("bind");
    let socket = UdpSocket::bind(address).expect("bind");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|octets| octets > 0) {
                    if writeln!(stream.get_mut(), "{number}").is_err() {
                        break;
                    }
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut datagram = vec![0; 65_536];
        while let Ok((_, client)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&[number], client);
        }
    });
}

const GATEWAY: &str = r#"---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: sllb-a
spec:
  gatewayClassName: meridio-experiment/stateless-load-balancer
  listeners: [{name: all, port: 4000, protocol: TCP}]
---
apiVersion: v1
kind: Service
metadata:
  name: a
  labels: {service.kubernetes.io/service-proxy-name: sllb-a}
spec:
  clusterIP: None
  selector: {app: a}
---
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata:
  name: vip
spec:
  parentRefs: [{name: sllb-a}]
  backendRefs: [{name: a, port: 1}]
  priority: 1
  destinationCIDRs: ["20.0.0.1/32", "2000::1/128"]
  sourceCIDRs: ["0.0.0.0/0", "::/0"]
  sourcePorts: ["0-65535"]
  destinationPorts: ["4000"]
  protocols: [TCP, UDP, SCTP]
"#;
