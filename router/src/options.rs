//! What the process is told, and the environment variables of the frontend that tell it: one table, printed into the docs.
//!
//! Flags win over the environment, the environment over defaults; an object always wins over what only fills its gaps.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use martlet_bgp::HoldTime;

use crate::intent::{Identity, Settings};

/// The port of Prometheus metrics, unless told otherwise.
pub const METRICS_PORT: u16 = 2224;
/// The port of gRPC health, unless told otherwise.
pub const HEALTH_PORT: u16 = 2225;
/// The control socket, unless told otherwise.
pub const CONTROL_SOCKET: &str = "/run/martlet/router.sock";

/// What the process is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder of objects; `None`: the cluster that this process is in.
    pub config_dir: Option<PathBuf>,
    /// The name of the Gateway.
    pub gateway: String,
    /// Its namespace, and that of objects which name none.
    pub namespace: String,
    /// What shapes the Intent.
    pub settings: Settings,
    /// The URL of the load balancer's socket; empty: every VIP counts as ready.
    pub lb_socket: String,
    /// How long VIPs are announced with `GRACEFUL_SHUTDOWN` (RFC 8326) before they are withdrawn at the end; zero: not at all.
    pub leave: Duration,
    /// How long forwarding goes on after the VIPs were withdrawn at the end.
    pub drain: Duration,
    /// How long routes of a former router are kept without being told again.
    pub adopt: Duration,
    /// The router id, if it is configured.
    pub router_id: Option<Ipv4Addr>,
    /// What is stable and unique of this pod: its uid; empty: the host name.
    pub pod_uid: String,
    /// The name of this pod, by which the cluster hears of its sessions; empty: there is no pod.
    pub pod_name: String,
    /// Where `martlet show` asks; `None`: nowhere.
    pub control_socket: Option<PathBuf>,
    /// Where Prometheus asks; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where kubelet asks; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Whether readiness includes that a gateway router is Up.
    pub health_needs_egress: bool,
    /// Whether a standstill of this machine is kept apart from the silence of a BFD neighbour.
    pub bfd_stall_guard: bool,
    /// What is logged, as `tracing` filters it.
    pub log_level: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config_dir: None,
            gateway: String::new(),
            namespace: "default".into(),
            settings: Settings::default(),
            lb_socket: martlet_api::readiness::DEFAULT_SOCKET.into(),
            leave: Duration::ZERO,
            drain: Duration::from_secs(10),
            adopt: Duration::from_secs(10),
            router_id: None,
            pod_uid: String::new(),
            pod_name: String::new(),
            control_socket: Some(CONTROL_SOCKET.into()),
            metrics: None,
            health: Some(SocketAddr::from(([0; 16], HEALTH_PORT))),
            health_needs_egress: false,
            bfd_stall_guard: true,
            log_level: "info".into(),
        }
    }
}

impl Options {
    /// Who we are: the pod's uid, else the host's name, make a router id where nothing else does.
    pub fn identity(&self) -> Identity {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "martlet".into());
        let name = if self.pod_uid.is_empty() { host().trim().to_owned() } else { self.pod_uid.clone() };
        Identity { router_id: self.router_id, name }
    }

    /// The defaults, with what the environment says; what is set and has no effect is noted.
    ///
    /// # Errors
    /// One line for each variable whose value makes no sense.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<(Self, Vec<String>), Vec<String>> {
        let (mut options, mut notes, mut errors) = (Self::default(), Vec::new(), Vec::new());
        for variable in &VARIABLES {
            let Some(value) = get(variable.name) else { continue };
            match variable.effect {
                Effect::Ignored(because) => notes.push(format!("{} is ignored: {because}", variable.name)),
                Effect::Sets(set) => {
                    if let Err(expected) = set(&mut options, value.trim()) {
                        errors.push(format!("{}={value:?}: expected {expected}", variable.name));
                    }
                }
            }
        }
        if errors.is_empty() { Ok((options, notes)) } else { Err(errors) }
    }
}

/// What a variable does with its value; the error says what would be accepted.
type Set = fn(&mut Options, &str) -> Result<(), &'static str>;

/// What a variable is good for.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// It sets an option.
    Sets(Set),
    /// It has none here, because.
    Ignored(&'static str),
}

/// A variable of the frontend's contract.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// The type of its value, in the words of the contract.
    pub kind: &'static str,
    /// What counts when it is not set.
    pub default: &'static str,
    /// For a human.
    pub meaning: &'static str,
    /// What it does.
    pub effect: Effect,
}

fn number<T: FromStr>(into: &mut T, value: &str, expected: &'static str) -> Result<(), &'static str> {
    *into = value.parse().map_err(|_| expected)?;
    Ok(())
}

/// Booleans as Go's `strconv.ParseBool` reads them.
fn boolean(into: &mut bool, value: &str) -> Result<(), &'static str> {
    *into = match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err("true or false"),
    };
    Ok(())
}

const AS_NUMBER: &str = "an AS number, 1 to 4294967295";
const PORT: &str = "a port, 1 to 65535";

fn non_zero<T: FromStr + Default + PartialEq>(
    into: &mut T,
    value: &str,
    expected: &'static str,
) -> Result<(), &'static str> {
    number(into, value, expected)?;
    if *into == T::default() { Err(expected) } else { Ok(()) }
}

/// A name that the kernel takes for an interface.
fn interface(into: &mut std::sync::Arc<str>, value: &str) -> Result<(), &'static str> {
    let fine = !value.is_empty() && value.len() <= 15 && !value.contains(['/', ' ']) && value != "." && value != "..";
    if !fine {
        return Err("the name of an interface, 1 to 15 octets without / and space");
    }
    *into = value.into();
    Ok(())
}

fn vrrps(options: &mut Options, value: &str) -> Result<(), &'static str> {
    let addresses = value.split(',').map(str::trim).filter(|text| !text.is_empty());
    let parsed: Result<_, _> = addresses.map(IpAddr::from_str).collect();
    options.settings.vrrps = parsed.map_err(|_| "IP addresses, separated by commas")?;
    Ok(())
}

fn metrics_port(options: &mut Options, value: &str) -> Result<(), &'static str> {
    let mut port = METRICS_PORT;
    non_zero(&mut port, value, PORT)?;
    // NFE_METRICS_ENABLED comes before it in the table.
    options.metrics = options.metrics.map(|mut address| {
        address.set_port(port);
        address
    });
    Ok(())
}

const NO_BIRD: &str = "there is no BIRD: BGP and BFD are part of the router";
const NO_NSP: &str = "there is no NSP service: objects come from the cluster or a folder";
const NO_POLLING: &str = "nothing is polled: connectivity is known at every change";

/// The whole contract, in the order in which it is read.
pub const VARIABLES: [Variable; 26] = [
    Variable {
        name: "NFE_VRRPS",
        kind: "[]string",
        default: "",
        meaning: "IP addresses of static next hops without supervision",
        effect: Effect::Sets(vrrps),
    },
    Variable {
        name: "NFE_EXTERNAL_INTERFACE",
        kind: "string",
        default: "ext-vlan",
        meaning: "interface of a GatewayRouter that names none",
        effect: Effect::Sets(|options, value| interface(&mut options.settings.external_interface, value)),
    },
    Variable {
        name: "NFE_BIRD_CONFIG_PATH",
        kind: "string",
        default: "/etc/bird",
        meaning: "path of BIRD's configuration",
        effect: Effect::Ignored(NO_BIRD),
    },
    Variable {
        name: "NFE_LOCAL_AS",
        kind: "string",
        default: "8103",
        meaning: "our AS number where a GatewayRouter omits it",
        effect: Effect::Sets(|options, value| non_zero(&mut options.settings.local_as, value, AS_NUMBER)),
    },
    Variable {
        name: "NFE_REMOTE_AS",
        kind: "string",
        default: "4248829953",
        meaning: "the gateway's AS number where a GatewayRouter omits it",
        effect: Effect::Sets(|options, value| non_zero(&mut options.settings.remote_as, value, AS_NUMBER)),
    },
    Variable {
        name: "NFE_BGP_LOCAL_PORT",
        kind: "string",
        default: "10179",
        meaning: "port that we listen on where a GatewayRouter omits it",
        effect: Effect::Sets(|options, value| non_zero(&mut options.settings.local_port, value, PORT)),
    },
    Variable {
        name: "NFE_BGP_REMOTE_PORT",
        kind: "string",
        default: "10179",
        meaning: "port that we connect to where a GatewayRouter omits it",
        effect: Effect::Sets(|options, value| non_zero(&mut options.settings.remote_port, value, PORT)),
    },
    Variable {
        name: "NFE_BGP_HOLD_TIME",
        kind: "string",
        default: "3",
        meaning: "hold time in seconds where a GatewayRouter omits it",
        effect: Effect::Sets(|options, value| {
            let hold_time = value.trim_end_matches('s').parse().ok().and_then(HoldTime::new);
            options.settings.hold_time = hold_time.ok_or("seconds: 0, or 3 to 65535")?;
            Ok(())
        }),
    },
    Variable {
        name: "NFE_TABLE_ID",
        kind: "int",
        default: "4096",
        meaning: "routing table of learned routes; the next one holds the blackhole defaults",
        effect: Effect::Sets(|options, value| {
            number(&mut options.settings.table, value, "a table number, 256 to 4294967294")?;
            let fine = (256..u32::MAX).contains(&options.settings.table);
            if fine { Ok(()) } else { Err("a table number, 256 to 4294967294") }
        }),
    },
    Variable {
        name: "NFE_ECMP",
        kind: "bool",
        default: "false",
        meaning: "egress traffic is spread over all best next hops, instead of one",
        effect: Effect::Sets(|options, value| boolean(&mut options.settings.ecmp, value)),
    },
    Variable {
        name: "NFE_DROP_IF_NO_PEER",
        kind: "bool",
        default: "true",
        meaning: "egress traffic without a route is dropped instead of leaking into the primary network",
        effect: Effect::Sets(|options, value| boolean(&mut options.settings.drop_if_no_peer, value)),
    },
    Variable {
        name: "NFE_LOG_BIRD",
        kind: "bool",
        default: "false",
        meaning: "BIRD's log in our log",
        effect: Effect::Ignored(NO_BIRD),
    },
    Variable {
        name: "NFE_NAMESPACE",
        kind: "string",
        default: "default",
        meaning: "namespace of the Gateway",
        effect: Effect::Sets(|options, value| {
            value.clone_into(&mut options.namespace);
            if value.is_empty() { Err("a namespace") } else { Ok(()) }
        }),
    },
    Variable {
        name: "NFE_NSP_SERVICE",
        kind: "string",
        default: "nsp-service-trench-a:7778",
        meaning: "address of the NSP service",
        effect: Effect::Ignored(NO_NSP),
    },
    Variable {
        name: "NFE_TRENCH_NAME",
        kind: "string",
        default: "default",
        meaning: "name of the trench",
        effect: Effect::Ignored("there are no trenches: the namespace takes their place"),
    },
    Variable {
        name: "NFE_ATTRACTOR_NAME",
        kind: "string",
        default: "default",
        meaning: "name of the attractor",
        effect: Effect::Ignored("there are no attractors: name the Gateway with --gateway"),
    },
    Variable {
        name: "NFE_LOG_LEVEL",
        kind: "string",
        default: "info (the frontend's own default is DEBUG)",
        meaning: "trace, debug, info, warn or error",
        effect: Effect::Sets(|options, value| {
            options.log_level = value.to_lowercase();
            let known = ["trace", "debug", "info", "warn", "error"].contains(&options.log_level.as_str());
            if known { Ok(()) } else { Err("trace, debug, info, warn or error") }
        }),
    },
    Variable {
        name: "NFE_NSP_ENTRY_TIMEOUT",
        kind: "time.Duration",
        default: "30s",
        meaning: "timeout of entries registered in NSP",
        effect: Effect::Ignored(NO_NSP),
    },
    Variable {
        name: "NFE_GRPC_KEEPALIVE_TIME",
        kind: "time.Duration",
        default: "30s",
        meaning: "keepalive towards NSP",
        effect: Effect::Ignored(NO_NSP),
    },
    Variable {
        name: "NFE_GRPC_MAX_BACKOFF",
        kind: "time.Duration",
        default: "5s",
        meaning: "back-off towards NSP",
        effect: Effect::Ignored(NO_NSP),
    },
    Variable {
        name: "NFE_DELAY_CONNECTIVITY",
        kind: "time.Duration",
        default: "1s",
        meaning: "delay between checks with connectivity",
        effect: Effect::Ignored(NO_POLLING),
    },
    Variable {
        name: "NFE_DELAY_NO_CONNECTIVITY",
        kind: "time.Duration",
        default: "3s",
        meaning: "delay between checks without connectivity",
        effect: Effect::Ignored(NO_POLLING),
    },
    Variable {
        name: "NFE_MAX_SESSION_ERRORS",
        kind: "int",
        default: "5",
        meaning: "errors of checks until VIPs are denounced",
        effect: Effect::Ignored(NO_POLLING),
    },
    Variable {
        name: "NFE_METRICS_ENABLED",
        kind: "bool",
        default: "false",
        meaning: "Prometheus metrics are served",
        effect: Effect::Sets(|options, value| {
            let mut enabled = false;
            boolean(&mut enabled, value)?;
            options.metrics = enabled.then(|| SocketAddr::from(([0; 16], METRICS_PORT)));
            Ok(())
        }),
    },
    Variable {
        name: "NFE_METRICS_PORT",
        kind: "int",
        default: "2224",
        meaning: "port of the metrics",
        effect: Effect::Sets(metrics_port),
    },
    Variable {
        name: "NFE_LB_SOCKET",
        kind: "url.URL",
        default: "unix:///var/lib/meridio/lb.sock",
        meaning: "the load balancer's readiness; empty: every VIP counts as ready",
        effect: Effect::Sets(|options, value| {
            value.clone_into(&mut options.lb_socket);
            let fine = value.is_empty() || value.strip_prefix("unix://").is_some_and(|path| path.starts_with('/'));
            if fine { Ok(()) } else { Err("unix:///path, or nothing") }
        }),
    },
];

/// The table for the docs.
pub fn markdown() -> String {
    let mut table = String::from("| variable | type | default | effect |\n|---|---|---|---|\n");
    for Variable { name, kind, default, meaning, effect } in &VARIABLES {
        let effect = match effect {
            Effect::Sets(_) => (*meaning).to_owned(),
            Effect::Ignored(because) => format!("{meaning}: ignored, because {because}"),
        };
        let _ = writeln!(table, "| `{name}` | {kind} | `{default}` | {effect} |");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Result<(Options, Vec<String>), Vec<String>> {
        Options::from_env(|asked| (asked == name).then(|| value.to_owned()))
    }

    fn set(name: &str, value: &str) -> Options {
        with(name, value).unwrap().0
    }

    #[test]
    fn every_default_of_the_table_is_the_default_of_the_code() {
        for variable in VARIABLES {
            if matches!(variable.effect, Effect::Sets(_)) {
                let word = variable.default.split(' ').next().unwrap();
                assert_eq!(set(variable.name, word), Options::default(), "{}", variable.name);
            }
        }
    }

    /// Name, value, and what it changes.
    type Row = (&'static str, &'static str, fn(&mut Options));

    #[test]
    fn every_variable_that_sets_something_does_so() {
        let expected = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options
        };
        let rows: [Row; 14] = [
            ("NFE_VRRPS", "10.0.0.1, fd00::1", |o| {
                o.settings.vrrps = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into();
            }),
            ("NFE_EXTERNAL_INTERFACE", "eth1", |o| o.settings.external_interface = "eth1".into()),
            ("NFE_LOCAL_AS", "64512", |o| o.settings.local_as = 64512),
            ("NFE_REMOTE_AS", "4200000000", |o| o.settings.remote_as = 4_200_000_000),
            ("NFE_BGP_LOCAL_PORT", "179", |o| o.settings.local_port = 179),
            ("NFE_BGP_REMOTE_PORT", "1179", |o| o.settings.remote_port = 1179),
            ("NFE_BGP_HOLD_TIME", "90", |o| o.settings.hold_time = HoldTime::DEFAULT),
            ("NFE_TABLE_ID", "5000", |o| o.settings.table = 5000),
            ("NFE_ECMP", "true", |o| o.settings.ecmp = true),
            ("NFE_DROP_IF_NO_PEER", "false", |o| o.settings.drop_if_no_peer = false),
            ("NFE_NAMESPACE", "red", |o| o.namespace = "red".into()),
            ("NFE_LOG_LEVEL", "DEBUG", |o| o.log_level = "debug".into()),
            ("NFE_METRICS_ENABLED", "true", |o| o.metrics = Some(SocketAddr::from(([0; 16], 2224)))),
            ("NFE_LB_SOCKET", "", |o| o.lb_socket = String::new()),
        ];
        for (name, value, change) in rows {
            assert_eq!(set(name, value), expected(change), "{name}");
        }
        let port = Options::from_env(|name| match name {
            "NFE_METRICS_ENABLED" => Some("1".into()),
            "NFE_METRICS_PORT" => Some("9000".into()),
            _ => None,
        });
        assert_eq!(port.unwrap().0.metrics.unwrap().port(), 9000);
        let sets = VARIABLES.iter().filter(|variable| matches!(variable.effect, Effect::Sets(_))).count();
        assert_eq!(sets, rows.len() + 1, "a row for each");
    }

    #[test]
    fn what_is_ignored_is_accepted_and_said() {
        for variable in VARIABLES {
            if let Effect::Ignored(because) = variable.effect {
                let (options, notes) = with(variable.name, "anything").unwrap();
                assert_eq!(options, Options::default());
                assert_eq!(notes, [format!("{} is ignored: {because}", variable.name)]);
            }
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_accepted() {
        let wrong = [
            ("NFE_LOCAL_AS", "0"),
            ("NFE_LOCAL_AS", "4294967296"),
            ("NFE_BGP_LOCAL_PORT", "65536"),
            ("NFE_BGP_HOLD_TIME", "2"),
            ("NFE_TABLE_ID", "254"),
            ("NFE_ECMP", "maybe"),
            ("NFE_EXTERNAL_INTERFACE", "a-name-that-is-too-long"),
            ("NFE_VRRPS", "10.0.0.1;10.0.0.2"),
            ("NFE_LB_SOCKET", "tcp://x"),
            ("NFE_LOG_LEVEL", "loud"),
            ("NFE_METRICS_PORT", "0"),
        ];
        for (name, value) in wrong {
            let errors = with(name, value).unwrap_err();
            assert!(errors[0].starts_with(&format!("{name}={value:?}: expected ")), "{errors:?}");
        }
    }

    #[test]
    fn the_table_for_the_docs_has_a_line_each() {
        assert_eq!(markdown().lines().count(), VARIABLES.len() + 2);
    }
}
