//! The operator's objects: a plain model, its YAML, and every version of what was accepted of it.
//!
//! The YAML goes through the product's own `Shelf` and `accept::view`, so that a bad object among good ones and a duplicate
//! are the real thing. What the model itself says of readiness ([`Version::ready`]) is the naive second opinion.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use ipnet::IpNet;
use martlet_api::accept;
use martlet_api::readiness::Readiness;
use martlet_api::source::Shelf;
use martlet_api::view::{ObjectName, Protocol, View};
use martlet_netlink::{Link, Object};
use martlet_router::intent::Intent;
use martlet_router::plan;

use crate::pod::settings;
use crate::script::Topology;

/// The Gateway's name.
pub const GATEWAY: &str = "sllb-a";
/// Our AS number.
pub const LOCAL_AS: u32 = 8103;

/// The AS number of a gateway.
pub fn asn(gateway: usize) -> u32 {
    let number = u32::try_from(gateway).unwrap_or_default();
    // Two octets and four.
    if gateway.is_multiple_of(2) { 4_248_829_953 + number } else { 65_100 + number }
}

fn octet(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn low(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// The external address of a pod.
pub fn pod_address(pod: usize, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(10, 0, 0, octet(1 + pod)).into()
    } else {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low(1 + pod)).into()
    }
}

/// The address of a gateway.
pub fn gateway_address(gateway: usize, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(10, 0, 0, octet(101 + gateway)).into()
    } else {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low(0x101 + gateway)).into()
    }
}

/// A VIP.
pub fn vip(number: usize, ipv4: bool) -> IpNet {
    let address: IpAddr = if ipv4 {
        Ipv4Addr::new(20, 0, 0, octet(1 + number)).into()
    } else {
        Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, low(1 + number)).into()
    };
    IpNet::from(address)
}

/// The name of a `GatewayRouter`.
pub fn name(gateway: usize, ipv4: bool) -> String {
    format!("g{gateway}-v{}", if ipv4 { 4 } else { 6 })
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// It is in the slices.
    pub present: bool,
    /// It is ready.
    pub ready: bool,
}

/// What the operator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Who is there.
    pub topology: Topology,
    /// VIPs by number.
    pub vips: BTreeSet<usize>,
    /// Endpoints by number.
    pub endpoints: Vec<Endpoint>,
    /// Malformed objects, by kind.
    pub bad: BTreeMap<u64, u64>,
    /// Changed fields: field and gateway, how often.
    pub changed: BTreeMap<(u64, usize), u64>,
}

/// What the product makes of objects: each is made once, whoever reads it.
#[derive(Debug)]
pub struct Made {
    /// As the product accepted it.
    pub view: Rc<View>,
    /// Gateways whose BFD packets must be signed.
    pub signs: BTreeSet<IpAddr>,
    intent: OnceCell<Intent>,
    fixed: OnceCell<BTreeSet<Object>>,
    /// The word of a load balancer with such an internal link, draining or not.
    words: RefCell<Vec<Word>>,
}

/// What it depends on, and the word.
type Word = ((Option<Link>, bool), Readiness);

impl Made {
    fn new(view: View) -> Self {
        let signs = view.routers.values().filter(|router| {
            let profile = match &router.protocol {
                Protocol::Bgp(bgp) => bgp.bfd.as_ref(),
                Protocol::Static(profile) => profile.as_ref(),
            };
            profile.is_some_and(|profile| profile.auth.is_some())
        });
        let signs = signs.map(|router| router.address).collect();
        Self { view: Rc::new(view), signs, intent: OnceCell::new(), fixed: OnceCell::new(), words: RefCell::default() }
    }

    /// The router's Intent.
    pub fn intent(&self, topology: &Topology) -> &Intent {
        self.intent.get_or_init(|| Intent::new(&self.view, &settings(topology)))
    }

    /// The word of a load balancer with this internal link, draining or not: made once.
    pub fn word(&self, internal: Option<&Link>, draining: bool, make: impl FnOnce() -> Readiness) -> Readiness {
        let same = |((link, drains), _): &&Word| link.as_ref() == internal && *drains == draining;
        if let Some((_, word)) = self.words.borrow().iter().find(same) {
            return word.clone();
        }
        let word = make();
        self.words.borrow_mut().push(((internal.cloned(), draining), word.clone()));
        word
    }

    /// The fixed part of the kernel that it asks for.
    pub fn fixed(&self, topology: &Topology) -> &BTreeSet<Object> {
        self.fixed.get_or_init(|| plan::fixed(self.intent(topology)))
    }
}

/// Everything accepted, once.
#[derive(Clone, Debug)]
pub struct Version {
    /// What the product made of it.
    pub made: Rc<Made>,
    /// As the product accepted it.
    pub view: Rc<View>,
    /// The VIPs that have a ready endpoint, by the model.
    pub ready: Rc<BTreeSet<IpNet>>,
    /// The VIPs of the model.
    pub vips: Rc<BTreeSet<IpNet>>,
}

/// All versions, and the product's memory of what was good.
#[derive(Debug)]
pub struct Api {
    /// What the operator says now.
    pub model: Model,
    shelf: Shelf,
    /// The last model that the shelf was not told of, because what it makes of it was known.
    untold: Option<Model>,
    /// Every version since the start.
    pub versions: Vec<Version>,
    /// The VIPs of all versions.
    pub vips_ever: BTreeSet<IpNet>,
}

/// What decides a model without malformed objects: topology, VIPs, endpoints, changed fields.
type Good = (Topology, BTreeSet<usize>, Vec<Endpoint>, BTreeSet<(u64, usize)>);

/// So many are known at most.
const KNOWN: usize = 1000;

thread_local! {
    /// What was made of models with nothing wrong in them: that depends neither on what was there before nor on the run.
    static MADE: RefCell<BTreeMap<Good, Rc<Made>>> = const { RefCell::new(BTreeMap::new()) };
}

impl Api {
    /// The first version.
    pub fn new(topology: &Topology) -> Self {
        let model = Model {
            topology: topology.clone(),
            vips: (0..topology.vips).collect(),
            endpoints: vec![Endpoint { present: true, ready: true }; topology.endpoints],
            bad: BTreeMap::new(),
            changed: BTreeMap::new(),
        };
        let mut api = Self {
            model,
            shelf: Shelf::new("default"),
            untold: None,
            versions: Vec::new(),
            vips_ever: BTreeSet::new(),
        };
        api.publish();
        api
    }

    /// The model changed: a new version.
    pub fn publish(&mut self) {
        let made = self.make();
        let vips = if self.model.any(38) { BTreeSet::new() } else { self.model.all_vips() };
        let served = self.model.endpoints.iter().any(|endpoint| endpoint.present && endpoint.ready)
            && !self.model.any(41)
            && !self.model.any(43);
        let ready = if served { vips.clone() } else { BTreeSet::new() };
        self.vips_ever.extend(vips.iter().copied());
        let view = Rc::clone(&made.view);
        self.versions.push(Version { made, view, ready: Rc::new(ready), vips: Rc::new(vips) });
    }

    /// What the product makes of the model now.
    fn make(&mut self) -> Rc<Made> {
        let key = self.model.good();
        let known = key.as_ref().and_then(|key| MADE.with_borrow(|known| known.get(key).cloned()));
        if let Some(made) = known {
            self.untold = Some(self.model.clone());
            return made;
        }
        for model in self.untold.take().iter().chain([&self.model]) {
            self.shelf.put(model.texts().into_iter().map(|(name, text)| (name, Ok(text))).collect());
        }
        let made = Rc::new(Made::new(accept::view(self.shelf.objects(), &ObjectName::new("default", GATEWAY))));
        if let Some(key) = key.filter(|_| self.shelf.objects().conditions.is_empty()) {
            MADE.with_borrow_mut(|known| {
                if known.len() >= KNOWN {
                    known.clear();
                }
                known.insert(key, Rc::clone(&made));
            });
        }
        made
    }

    /// The newest version.
    pub fn newest(&self) -> usize {
        self.versions.len() - 1
    }
}

impl Model {
    /// What decides it, if nothing in it is malformed.
    fn good(&self) -> Option<Good> {
        let changed = self.changed.iter().filter(|(_, count)| **count > 0).map(|(field, _)| *field).collect();
        let is_good = self.bad.values().all(|count| *count == 0);
        is_good.then(|| (self.topology.clone(), self.vips.clone(), self.endpoints.clone(), changed))
    }

    /// The families that are there: IPv4 first.
    pub fn families(&self) -> &'static [bool] {
        if self.topology.ipv6 { &[true, false] } else { &[true] }
    }

    fn all_vips(&self) -> BTreeSet<IpNet> {
        self.families().iter().flat_map(|ipv4| self.vips.iter().map(|number| vip(*number, *ipv4))).collect()
    }

    fn changed(&self, field: u64, gateway: usize) -> bool {
        self.changed.get(&(field, gateway)).is_some_and(|count| *count > 0)
    }

    /// Whether a field that belongs to no gateway is changed.
    fn any(&self, field: u64) -> bool {
        self.changed.iter().any(|((one, _), count)| *one == field && *count > 0)
    }

    /// Whether BFD supervises a gateway.
    pub fn bfd(&self, gateway: usize) -> bool {
        (self.topology.bfd && !self.changed(11, gateway)) || self.is_static(gateway)
    }

    /// Whether a gateway is a static next hop.
    pub const fn is_static(&self, gateway: usize) -> bool {
        self.topology.r#static && gateway + 1 == self.topology.gateways
    }

    fn texts(&self) -> BTreeMap<String, String> {
        let service = if self.any(41) { SERVICE_YAML.replace("sllb-a", "elsewhere") } else { SERVICE_YAML.to_owned() };
        let gateway = if self.any(38) { String::new() } else { GATEWAY_YAML.to_owned() };
        let mut texts = BTreeMap::from([
            ("gateway.yaml".to_owned(), gateway),
            ("service.yaml".to_owned(), service),
            ("routers.yaml".to_owned(), self.routers()),
            ("routes.yaml".to_owned(), self.routes()),
            ("slices.yaml".to_owned(), self.slices()),
        ]);
        for (kind, _) in self.bad.iter().filter(|(_, count)| **count > 0) {
            let text = match kind % 6 {
                0 => "kind: [unclosed".to_owned(),
                1 => router_head("bad") + "  address: 10.0.0.256\n",
                2 => router_head("bad") + "  address: 10.0.0.101\n  bgp: {holdTime: 1s}\n",
                3 => router_head(&name(0, true)) + "  address: 10.0.0.77\n",
                4 => route("bad", "20.0.0.0/24", 5),
                _ => "apiVersion: v1\nkind: Service\nmetadata: {name: 7}\n".to_owned(),
            };
            texts.insert(format!("zz-bad-{kind}.yaml"), text);
        }
        texts
    }

    fn routers(&self) -> String {
        let mut text = String::new();
        for gateway in 0..self.topology.gateways {
            for ipv4 in self.families() {
                if !self.changed(14, gateway) {
                    self.router(&mut text, gateway, *ipv4);
                }
            }
        }
        text
    }

    fn router(&self, text: &mut String, gateway: usize, ipv4: bool) {
        let is = |field: u64| self.changed(field, gateway);
        text.push_str(&router_head(&name(gateway, ipv4)));
        let elsewhere = if is(32) { 90 } else { 0 };
        let address = gateway_address(gateway + elsewhere, ipv4);
        let _ = writeln!(text, "  address: \"{address}\"");
        for (field, line) in [(33, "  interface: nosuch0\n"), (34, "  description: \"the other one\"\n")] {
            text.push_str(if is(field) { line } else { "" });
        }
        let bfd = self.bfd_profile(gateway);
        if self.is_static(gateway) || is(36) {
            let _ = writeln!(text, "  static: {{bfd: {bfd}}}");
            return;
        }
        text.push_str(if is(35) { "  protocol: BGP\n" } else { "" });
        let hold = if is(0) { 9 } else { self.topology.hold_time_s };
        let ours = if is(16) { 8104 } else { LOCAL_AS };
        let remote = if is(13) { 64_999 } else { asn(gateway) };
        let _ = writeln!(text, "  bgp:\n    localASN: {ours}\n    remoteASN: {remote}\n    holdTime: {hold}s");
        let yields = |field: u64| GIVES_WAY.iter().any(|(one, other)| *one == field && is(*other));
        for (_, line) in BGP_LINES.iter().filter(|(field, _)| is(*field) && !yields(*field)) {
            text.push_str(line);
        }
        if is(27) {
            let _ = writeln!(text, "    sourceAddress: \"{}\"", pod_address(0, ipv4));
        }
        if is(30) && !is(6) {
            let all = if ipv4 { "0.0.0.0/0" } else { "::/0" };
            let _ = writeln!(text, "    import:\n      prefixes: [{{prefix: \"{all}\", maxLength: 0}}]");
        }
        if self.bfd(gateway) {
            let _ = writeln!(text, "    bfd: {bfd}");
        }
    }

    fn bfd_profile(&self, gateway: usize) -> String {
        let is = |field: u64| self.changed(field, gateway);
        let pick = |slow: u64| {
            if is(slow) {
                1000
            } else if is(12) {
                200
            } else {
                300
            }
        };
        let multiplier = if is(45) {
            5
        } else if is(12) {
            4
        } else {
            3
        };
        let mut profile =
            format!("{{switch: true, minTx: {}ms, minRx: {}ms, multiplier: {multiplier}", pick(19), pick(20));
        let lines = [
            (15, ", strict: true"),
            (21, ", echo: 100ms"),
            (23, ", multihop: {ttl: 2}"),
            (37, ", authentication: {type: KeyedSHA1, keyID: 1, keySource: keys, keyName: one}"),
        ];
        for (_, line) in lines.iter().filter(|(field, _)| is(*field)) {
            profile.push_str(line);
        }
        profile + "}"
    }

    fn routes(&self) -> String {
        let routes = self.families().iter().flat_map(|ipv4| {
            self.vips.iter().map(move |number| {
                let family = if *ipv4 { 4 } else { 6 };
                let mut text = route(&format!("vip{number}-v{family}"), &vip(*number, *ipv4).to_string(), 10);
                if self.any(39) {
                    text = text.replace("protocols: [TCP]", "protocols: [UDP, SCTP]\n  destinationPorts: [\"80-90\"]");
                }
                if self.any(40) {
                    text.push_str(if *ipv4 {
                        "  sourceCIDRs: [192.0.2.0/24]\n"
                    } else {
                        "  sourceCIDRs: [\"2001:db8::/32\"]\n"
                    });
                }
                if self.any(43) { text.replace("service-a", "service-x") } else { text }
            })
        });
        routes.collect()
    }

    fn slices(&self) -> String {
        let mut text = String::new();
        for ipv4 in self.families() {
            let family = if *ipv4 { 4 } else { 6 };
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: a-v{family}\n  labels: \
                 {{kubernetes.io/service-name: service-a}}\naddressType: IPv{family}\nendpoints:\n"
            );
            let mut any = false;
            for (number, endpoint) in self.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.present) {
                any = true;
                let host = if self.any(44) { 51 } else { 11 } + number;
                let address = if *ipv4 { format!("169.111.100.{host}") } else { format!("fd00:111:100::{host}") };
                let _ = write!(
                    text,
                    "- addresses: [\"{address}\"]\n  conditions: {{ready: {}}}\n  targetRef: {{kind: Pod, name: \
                     app-{number}}}\n  zone: \"{}\"\n",
                    endpoint.ready,
                    if self.any(42) { 20 } else { 1 } + number
                );
            }
            if !any {
                text.push_str("  []\n");
            }
        }
        text
    }
}

/// What the fields of a BGP section become: the rest is made in [`Model::router`].
const BGP_LINES: &[(u64, &str)] = &[
    (1, "    passive: true\n"),
    (2, "    connectRetry: 500ms\n"),
    (3, "    communities: [\"65000:100\", no-export]\n    largeCommunities: [\"4248829953:1:2\"]\n"),
    (4, "    med: 10\n"),
    (5, "    prepend: 2\n"),
    (6, "    import:\n      defaultOnly: true\n"),
    (7, "    maximumPrefixes:\n      limit: 100\n      warningPercent: 1\n      restartAfter: 1s\n"),
    (8, "    gracefulRestart:\n      restartTime: 20s\n"),
    (9, "    maximumPrefixes:\n      limit: 1\n      restartAfter: 1s\n"),
    (10, "    shutdown:\n      switch: true\n      message: Maintenance\n"),
    (17, "    localPort: 10180\n"),
    (18, "    remotePort: 10180\n"),
    (22, "    multihop: {ttl: 64}\n"),
    (24, "    auth: {keySource: keys, keyName: one}\n"),
    (25, "    tcpAo: {sendID: 1, receiveID: 1, keySource: keys, keyName: one}\n"),
    (26, "    ttlSecurity: true\n"),
    (28, "    families: [IPv4, IPv6]\n"),
    (29, "    localPreference: 200\n"),
    (31, "    role: customer\n"),
];

/// Fields that give way to another one.
const GIVES_WAY: [(u64, u64); 3] = [(7, 9), (25, 24), (26, 22)];

const GATEWAY_YAML: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: sllb-a
spec:
  gatewayClassName: meridio-experiment/stateless-load-balancer
  listeners: []
";

const SERVICE_YAML: &str = "apiVersion: v1
kind: Service
metadata:
  name: service-a
  labels: {service.kubernetes.io/service-proxy-name: sllb-a}
spec:
  clusterIP: None
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
data: {one: c2VjcmV0}
";

fn router_head(name: &str) -> String {
    format!(
        "---\napiVersion: meridio.experiment.gateway.api.poc/v1alpha1\nkind: GatewayRouter\nmetadata:\n  name: {name}\n  \
         labels: {{service.kubernetes.io/service-proxy-name: sllb-a}}\nspec:\n"
    )
}

fn route(name: &str, destination: &str, priority: u32) -> String {
    format!(
        "---\napiVersion: meridio.experiment.gateway.api.poc/v1alpha1\nkind: L34Route\nmetadata:\n  name: {name}\nspec:\n  \
         parentRefs: [{{name: sllb-a}}]\n  backendRefs: [{{name: service-a, port: 1}}]\n  priority: {priority}\n  \
         destinationCIDRs: [\"{destination}\"]\n  protocols: [TCP]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;

    #[test]
    fn everything_that_the_model_writes_is_accepted_and_what_is_bad_hurts_nobody() {
        let mut topology = Script::draw(1).topology;
        (topology.gateways, topology.ipv6, topology.bfd, topology.r#static) = (3, true, true, true);
        let mut api = Api::new(&topology);
        let first = Rc::clone(&api.versions[0].view);
        assert_eq!((first.routers.len(), &first.vips), (6, &*api.versions[0].vips), "{:#?}", first.conditions);
        assert!(first.conditions.iter().all(|condition| condition.status), "{:#?}", first.conditions);
        assert_eq!(first.services["service-a"].endpoints.len(), topology.endpoints);
        for field in 0..crate::faults::CONFIG_FIELDS {
            api.model.changed = [((field, 0), 1)].into();
            api.publish();
            let view = &api.versions[api.newest()].view;
            // A Gateway that is gone and a backend that is not there are told, of course; `protocol` says what was clear.
            let told = [38, 41, 43].contains(&field);
            let good = view.conditions.iter().all(|condition| condition.status);
            assert!(good != told, "{field}: {:#?}", view.conditions);
            assert!(*view != first || field == 35, "field {field} does nothing");
        }
        api.model.changed.clear();
        for kind in 0..6 {
            api.model.bad = [(kind, 1)].into();
            api.publish();
            let view = &api.versions[api.newest()].view;
            assert!(view.conditions.iter().any(|condition| !condition.status), "{kind}");
            assert_eq!((&view.routers, &view.vips), (&first.routers, &first.vips), "{kind}");
        }
    }
}
