//! A client, a load balancer and a sink in a row, each in a namespace of its own; many such rows stand side by side, so that
//! runs can take turns without starting anything.
//!
//! ```text
//!  client 10.1.0.1 ----- 10.1.0.254 lb 10.9.255.1 ----- sink: all endpoints 10.9.0.0/18, the VIP on lo
//! ```

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use martlet_lb::control::{Answer, Request, ask};
use martlet_lb::show::State;

use crate::demo::topology::find_martlet;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{Seen, until};

/// The VIP.
pub const VIP: Ipv4Addr = Ipv4Addr::new(20, 0, 0, 1);
/// The client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// Somebody answers here, over TCP and UDP.
pub const SERVED: u16 = 4000;
/// What comes here is counted by the interface and dropped.
pub const FLOOD: u16 = 4001;
/// Ten thousand endpoints take their time on a busy machine.
const READY: Duration = Duration::from_mins(3);

/// Who chooses the way from client to sink.
#[derive(Clone, Copy, Debug)]
pub enum Middle {
    /// The main table: plain forwarding.
    Plain,
    /// The same in a namespace with one policy rule, which no packet matches: what the kernel takes for asking its rules.
    Rule,
    /// `martlet lb` with these arguments.
    Balancer(&'static [&'static str]),
}

/// What stands between client and sink.
#[derive(Clone, Debug)]
pub struct Setup {
    /// For rows and logs.
    pub name: &'static str,
    /// Who chooses.
    pub middle: Middle,
    /// Routes, of which the one that is used has the lowest priority.
    pub routes: u32,
    /// Endpoints.
    pub endpoints: u32,
    /// A program and its arguments that starts the load balancer, such as with fewer rights; empty: nobody between.
    pub through: &'static [&'static str],
}

/// A row of namespaces.
#[derive(Debug)]
pub struct Stage {
    /// What it is.
    pub setup: Setup,
    /// Who sends.
    pub client: Namespace,
    /// Who chooses.
    pub middle: Namespace,
    /// Who receives.
    pub sink: Namespace,
    folder: PathBuf,
    control: PathBuf,
    process: Option<Process>,
}

/// The address of an endpoint.
pub fn endpoint(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 9, 0, 0).to_bits() + number + 1)
}

impl Stage {
    /// Builds it, and waits until the VIP is ready.
    ///
    /// # Errors
    /// A part of it fails, or it is not ready in time.
    pub fn new(lab: &Lab, setup: Setup) -> Result<Self> {
        let role = |role: &str| lab.namespace(&format!("{role}-{}", setup.name));
        let (client, middle, sink) = (role("c")?, role("m")?, role("s")?);
        lab.link((&client, "eth0"), (&middle, "ext"))?;
        lab.link((&middle, "int"), (&sink, "eth0"))?;
        // Nothing but what we send shall be counted.
        for namespace in [&client, &middle, &sink] {
            namespace.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        }
        middle.sysctl("net.ipv4.ip_forward", "1")?;
        client.ip(&format!("addr add {CLIENT}/24 dev eth0\nroute add default via 10.1.0.254"))?;
        middle.ip("addr add 10.1.0.254/24 dev ext\naddr add 10.9.255.1/16 dev int")?;
        sink.ip(&format!(
            "addr add 10.9.255.254/16 dev eth0\naddr add {VIP}/32 dev lo\nroute add default via 10.9.255.1\n\
             route add local 10.9.0.0/18 dev lo"
        ))?;
        for line in [
            "add table inet bench".to_owned(),
            "add chain inet bench pre { type filter hook prerouting priority -400 ; }".to_owned(),
            format!("add rule inet bench pre udp dport {FLOOD} drop"),
        ] {
            sink.output("nft", &line.split(' ').collect::<Vec<_>>())?;
        }
        let base = lab.dir().join(setup.name);
        let mut stage = Self {
            folder: base.join("config"),
            control: base.join("control.sock"),
            setup,
            client,
            middle,
            sink,
            process: None,
        };
        let route = format!("route add {VIP}/32 via 10.9.255.254");
        match stage.setup.middle {
            Middle::Plain => stage.middle.ip(&route)?,
            Middle::Rule => stage.middle.ip(&format!("{route}\nrule add fwmark 1 lookup 77 priority 50"))?,
            Middle::Balancer(arguments) => stage.start(lab, arguments)?,
        }
        Ok(stage)
    }

    fn start(&mut self, lab: &Lab, arguments: &[&str]) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        let Setup { name, routes, endpoints, .. } = self.setup;
        fs::write(self.folder.join("routes.yaml"), routes_of(routes, endpoints))?;
        self.set_endpoints(&(0..endpoints).collect::<Vec<_>>())?;
        // The neighbours are known before the first packet, however many.
        let mac = self.sink.ip_json(&["link", "show", "dev", "eth0"])?;
        let mac = mac.first().and_then(|link| link.get("address")?.as_str()).context("the sink has no address")?;
        let mut lines = String::new();
        for number in 0..endpoints {
            writeln!(lines, "neigh add {} lladdr {mac} dev int nud permanent", endpoint(number))?;
        }
        self.middle.ip(&lines)?;
        let mut command = Command::new("taskset");
        let martlet = if self.setup.through.is_empty() { find_martlet()? } else { self.for_anybody(lab)? };
        command.args(["-c", "1"]).args(self.setup.through).arg(martlet).args([
            "lb",
            "--gateway",
            "bench",
            "--queues",
            "0",
        ]);
        command.args(["--metrics", "", "--health", "", "--drain", "0"]);
        command.arg("--config-dir").arg(&self.folder).arg("--control-socket").arg(&self.control);
        command.args(["--socket", &format!("unix://{}", self.control.with_file_name("lb.sock").display())]);
        self.process = Some(lab.spawn(&format!("lb-{name}"), Some(&self.middle), {
            command.args(arguments);
            command
        })?);
        self.wait_for(endpoints)
    }

    /// The product and a folder for its sockets, where another user than ours finds them.
    fn for_anybody(&self, lab: &Lab) -> Result<PathBuf> {
        let (copy, base) = (lab.dir().join("martlet"), self.control.with_file_name(""));
        fs::copy(find_martlet()?, &copy)?;
        for (path, mode) in [(lab.dir(), 0o755), (&base, 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(copy)
    }

    /// Waits until the VIP is served by so many endpoints.
    ///
    /// # Errors
    /// It is not, or the load balancer ended.
    pub fn wait_for(&self, endpoints: u32) -> Result<()> {
        until(&format!("{endpoints} endpoints of {}", self.setup.name), READY, || {
            if let Some(process) = &self.process
                && let Some(status) = process.ended()
            {
                anyhow::bail!("the load balancer ended: {status}\n{}", process.tail(10));
            }
            let Ok(state) = self.state() else { return Ok(Seen::not_yet("no answer")) };
            let ready = state.services.get("bench").map_or(0, |service| service.ready_ipv4);
            let served = !state.vips.is_empty() && state.vips.values().all(|vip| vip.ready);
            let is_so = served && u32::try_from(ready).is_ok_and(|ready| ready == endpoints);
            Ok(if is_so {
                Seen::Yes(())
            } else {
                Seen::not_yet(format!("{ready} ready: {:?} {:?}", state.vips, state.notes))
            })
        })
    }

    /// What the load balancer shows.
    ///
    /// # Errors
    /// It does not answer.
    pub fn state(&self) -> Result<State> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(ask(&self.control, &Request::Status))? {
            Answer::Status(state) => Ok(*state),
            other => anyhow::bail!("{other:?}"),
        }
    }

    /// The CPU time that its load balancer takes when nothing happens, milliseconds a second.
    ///
    /// # Errors
    /// There is none, or it ended.
    pub fn idle(&self) -> Result<f64> {
        self.process.as_ref().context("there is no load balancer")?.load()
    }

    /// Adds a file of objects, or replaces it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        let aside = self.folder.with_file_name("new");
        fs::write(&aside, text)?;
        fs::rename(aside, self.folder.join(name)).map_err(Into::into)
    }

    /// Says which endpoints are ready.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_endpoints(&self, ready: &[u32]) -> Result<()> {
        let mut text = String::new();
        for (number, chunk) in ready.chunks(1000).enumerate() {
            write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: bench-{number}\n  \
                 labels: {{kubernetes.io/service-name: bench}}\naddressType: IPv4\nendpoints:\n"
            )?;
            for one in chunk {
                writeln!(
                    text,
                    "- {{addresses: [\"{}\"], conditions: {{ready: true}}, zone: \"{one}\", \
                     targetRef: {{kind: Pod, name: app-{one}}}}}",
                    endpoint(*one)
                )?;
            }
        }
        self.put("endpoints.yaml", &text)
    }

    /// Ends its load balancer.
    pub fn end(self) {
        if let Some(process) = self.process {
            process.end(Duration::from_secs(5));
        }
    }
}

/// Gateway, Service and routes.
fn routes_of(routes: u32, endpoints: u32) -> String {
    let mut text = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: bench}}\nspec:\n  \
         gatewayClassName: meridio-experiment/stateless-load-balancer\n  \
         listeners: [{{name: all, port: {SERVED}, protocol: TCP}}]\n---\napiVersion: v1\nkind: Service\nmetadata:\n  \
         name: bench\n  labels: {{service.kubernetes.io/service-proxy-name: bench}}\n  \
         annotations: {{meridio-experiment/service-max-endpoints: \"{}\"}}\nspec: {{clusterIP: None}}\n",
        endpoints.max(100)
    );
    for number in 0..routes {
        // Of the ports in use the last one; the others are beside them, each with sources of its own.
        let last = number + 1 == routes;
        let port = 10_000 + number;
        let ports = if last { format!("\"{SERVED}\", \"{FLOOD}\"") } else { format!("\"{port}\"") };
        let sources = if last {
            String::new()
        } else {
            format!("\n  sourceCIDRs: [\"10.{}.{}.0/24\"]", number / 250, number % 250)
        };
        let _ = write!(
            text,
            "---\napiVersion: meridio.experiment.gateway.api.poc/v1alpha1\nkind: L34Route\nmetadata: {{name: r{number}}}\nspec:\n  \
             parentRefs: [{{name: bench}}]\n  backendRefs: [{{name: bench}}]\n  priority: {}\n  \
             destinationCIDRs: [\"{VIP}/32\"]\n  destinationPorts: [{ports}]\n  protocols: [TCP, UDP]{sources}\n",
            routes - number
        );
    }
    text
}
