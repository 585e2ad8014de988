//! Two pods behind the equal-cost routes of one gateway: replicas agree, one dies, one loses its inside link.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use martlet_lab::demo::topology::find_martlet;
use martlet_lab::namespace::Namespace;
use martlet_lab::process::Process;
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{Lab, Signal};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const VIP: Ipv4Addr = Ipv4Addr::new(20, 0, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 254);
const PORT: u16 = 4000;
const APPLICATIONS: u8 = 3;

/// The gateway is the client too; what the applications answer goes straight back to it.
///
/// ```text
///             10.1.0.1 pod 1 10.9.0.1
///  gateway ---                       --- bridge --- application n 10.9.0.1n, the VIP on lo
///  10.1.0.254 10.1.0.2 pod 2 10.9.0.2          |
///         +------------------------------------+ 10.9.0.254
/// ```
struct Two {
    lab: Lab,
    gateway: Namespace,
    fabric: Namespace,
    applications: Vec<Namespace>,
    pods: Vec<Pod>,
}

struct Pod {
    process: Process,
    folder: PathBuf,
}

impl Two {
    fn new(arguments: &[&str]) -> Self {
        let lab = crate::lab();
        let (gateway, fabric) = (lab.namespace("gateway").unwrap(), lab.namespace("fabric").unwrap());
        lab.link((&gateway, "out"), (&fabric, "g-out")).unwrap();
        lab.link((&gateway, "in"), (&fabric, "g-in")).unwrap();
        let (mut outside, mut inside) = (vec!["g-out".to_owned()], vec!["g-in".to_owned()]);
        let mut two = Self { lab, gateway, fabric, applications: vec![], pods: vec![] };
        let mut namespaces = Vec::new();
        for number in 1..=2 {
            let pod = two.lab.namespace(&format!("pod{number}")).unwrap();
            let (out, into) = (format!("p{number}-out"), format!("p{number}-in"));
            two.lab.link((&pod, "ext"), (&two.fabric, &out)).unwrap();
            two.lab.link((&pod, "int"), (&two.fabric, &into)).unwrap();
            outside.push(out);
            inside.push(into);
            namespaces.push(pod);
        }
        for number in 1..=APPLICATIONS {
            let application = two.lab.namespace(&format!("app{number}")).unwrap();
            let port = format!("a{number}");
            two.lab.link((&application, "eth0"), (&two.fabric, &port)).unwrap();
            inside.push(port);
            two.applications.push(application);
        }
        for (name, ports) in [("outside", &outside), ("inside", &inside)] {
            two.fabric.bridge(name, &ports.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
        two.gateway.ip("addr add 10.1.0.254/24 dev out\naddr add 10.9.0.254/24 dev in").unwrap();
        two.gateway.sysctl("net.ipv4.fib_multipath_hash_policy", "1").unwrap();
        two.route(&[1, 2]);
        for (number, application) in (1..).zip(&two.applications) {
            let lines = [
                format!("addr add 10.9.0.1{number}/24 dev eth0"),
                format!("addr add {VIP}/32 dev lo"),
                format!("route add {CLIENT}/32 via 10.9.0.254"),
            ];
            application.ip(&lines.join("\n")).unwrap();
            serve(application, number);
        }
        for (number, pod) in (1..).zip(namespaces) {
            pod.ip(&format!("addr add 10.1.0.{number}/24 dev ext\naddr add 10.9.0.{number}/24 dev int")).unwrap();
            for sysctl in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
                pod.sysctl(sysctl, "1").unwrap();
            }
            let folder = two.lab.dir().join(format!("pod{number}"));
            fs::create_dir_all(folder.join("config")).unwrap();
            fs::write(folder.join("config/objects.yaml"), objects()).unwrap();
            let mut command = Command::new(find_martlet().unwrap());
            command.args(["lb", "--gateway", "sllb-a", "--metrics", "", "--health", "", "--control-socket", ""]);
            command.arg("--config-dir").arg(folder.join("config"));
            command.args(["--socket", &format!("unix://{}", folder.join("lb.sock").display())]).args(arguments);
            let process = two.lab.spawn(&format!("lb{number}"), Some(&pod), command).unwrap();
            two.pods.push(Pod { process, folder });
        }
        for pod in &two.pods {
            pod.wait_ready(true);
        }
        two
    }

    /// The gateway's routes to the VIP, as the pods' announcements would make them.
    fn route(&self, pods: &[u8]) {
        let hops: Vec<String> = pods.iter().map(|pod| format!("nexthop via 10.1.0.{pod} dev out")).collect();
        self.gateway.ip(&format!("route replace {VIP}/32 src {CLIENT} {}", hops.join(" "))).unwrap();
    }
}

impl Pod {
    /// Waits until its router would hear that the VIP is ready, or that it is not.
    fn wait_ready(&self, ready: bool) {
        until("readiness", LIMIT, || {
            let Ok(stream) = UnixStream::connect(self.folder.join("lb.sock")) else {
                return Ok(Seen::not_yet("no socket"));
            };
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            let says = line.contains(&format!("\"ready\":{ready}"));
            Ok(if says { Seen::Yes(()) } else { Seen::not_yet(line) })
        })
        .unwrap();
    }
}

/// Answers every line and every datagram with a number.
fn serve(application: &Namespace, number: u8) {
    let open = || Ok::<_, std::io::Error>((TcpListener::bind((VIP, PORT))?, UdpSocket::bind((VIP, PORT))?));
    let (listener, socket) = application.inside(open).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut stream, mut line) = (BufReader::new(stream), String::new());
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

/// Who answers on a connection now.
fn ask(stream: &mut BufReader<TcpStream>) -> u8 {
    stream.get_mut().write_all(b"who?\n").unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn connections_through_a_killed_pod_go_on_through_the_other_to_the_same_endpoint() {
    for engine in ["queue", "kernel"] {
        let two = Two::new(&["--engine", engine]);
        let open = || {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, PORT)), LIMIT).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            BufReader::new(stream)
        };
        let mut connections: Vec<_> = two
            .gateway
            .inside(|| (0..60).map(|_| open()).map(|mut one| (ask(&mut one), one)).collect::<Vec<_>>())
            .unwrap();
        let spread: BTreeSet<u8> = connections.iter().map(|(application, _)| *application).collect();
        assert_eq!(spread, [1, 2, 3].into());
        two.pods[0].process.signal(Signal::Kill).unwrap();
        two.route(&[2]);
        let same = connections.iter_mut().filter_map(|(was, stream)| (ask(stream) == *was).then_some(())).count();
        assert_eq!(same, 60, "every connection goes on to its endpoint ({engine})");
    }
}

#[test]
fn a_pod_whose_inside_link_is_cut_withdraws_its_vips_and_the_other_does_not() {
    let two = Two::new(&[]);
    two.fabric.ip("link set p1-in down").unwrap();
    two.pods[0].wait_ready(false);
    two.pods[1].wait_ready(true);
    two.fabric.ip("link set p1-in up").unwrap();
    two.pods[0].wait_ready(true);
}

/// A datagram in two fragments.
fn fragments(port: u16) -> [Vec<u8>; 2] {
    let body = vec![7; 1192];
    let datagram = [&port.to_be_bytes()[..], &PORT.to_be_bytes(), &1200_u16.to_be_bytes(), &[0, 0], &body].concat();
    let packet = |part: &[u8], place: u16| {
        let length = u16::try_from(20 + part.len()).unwrap().to_be_bytes();
        let head = [&[0x45, 0], &length[..], &port.to_be_bytes(), &place.to_be_bytes(), &[64, 17, 0, 0]].concat();
        [&head[..], &CLIENT.octets(), &VIP.octets(), part].concat()
    };
    [packet(&datagram[..800], 0x2000), packet(&datagram[800..], 100)]
}

#[test]
fn fragments_that_arrive_at_different_pods_meet_at_one_endpoint() {
    let two = Two::new(&["--fragments", "addresses"]);
    let (raw, socket) = two
        .gateway
        .inside(|| {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
            let socket = UdpSocket::bind((CLIENT, 0)).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            (raw, socket)
        })
        .unwrap();
    let port = socket.local_addr().unwrap().port();
    let send = |packet: &[u8]| {
        raw.send_to(packet, &SockAddr::from(SocketAddr::from((VIP, 0)))).unwrap();
    };
    for order in [[1, 2], [2, 1]] {
        for (fragment, pod) in fragments(port).iter().zip(order) {
            two.route(&[pod]);
            send(fragment);
        }
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 1, "the endpoint has put it together and answers");
    }
}

fn objects() -> String {
    let mut endpoints = String::new();
    for number in 1..=APPLICATIONS {
        let _ = writeln!(
            endpoints,
            "- {{addresses: [10.9.0.1{number}], conditions: {{ready: true}}, zone: \"{number}\", \
             targetRef: {{kind: Pod, name: app-{number}}}}}"
        );
    }
    format!("{OBJECTS}{endpoints}")
}

const OBJECTS: &str = r#"---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: sllb-a}
spec:
  gatewayClassName: meridio-experiment/stateless-load-balancer
  listeners: [{name: all, port: 4000, protocol: TCP}]
---
apiVersion: v1
kind: Service
metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: sllb-a}}
spec: {clusterIP: None}
---
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata: {name: vip}
spec:
  parentRefs: [{name: sllb-a}]
  backendRefs: [{name: a}]
  destinationCIDRs: ["20.0.0.1/32"]
  destinationPorts: ["4000"]
  protocols: [TCP, UDP]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints:
"#;
