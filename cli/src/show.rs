//! `martlet show`, `explain`, `reset`, `refresh`: questions to a running router.
//!
//! What `show` asks the load balancer instead is in [`crate::lb_show`].

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use martlet_router::control::{Answer, Request, ask};
use martlet_router::core::{BfdView, PeerView, Status};
use martlet_router::options::CONTROL_SOCKET;

use crate::lb_show::{self, Part};
use crate::table::Table;

const EXAMPLES: &str = "\
Examples:
  martlet show peers
  martlet show vips --watch
  martlet show peers -o wide              AS numbers, what was negotiated, timers
  martlet show routes -o json
  martlet show endpoints                  of the load balancer, as are services, flows and queues";

/// Where the router is, and how it is shown.
#[derive(Debug, clap::Args)]
pub struct Where {
    /// The router's control socket.
    #[arg(long, global = true, env = "MARTLET_CONTROL_SOCKET", default_value = CONTROL_SOCKET, value_name = "PATH")]
    control_socket: PathBuf,
}

impl Where {
    async fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        let path = self.control_socket.display();
        let answer: Answer = ask(&self.control_socket, request).await.with_context(|| {
            format!("{path}: no router answers there (is it running, in this container? --control-socket says where)")
        })?;
        match answer {
            Answer::Error(text) => bail!("{text}"),
            answer => Ok(answer),
        }
    }
}

/// The flags of `show`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Show {
    /// What.
    #[arg(value_enum)]
    what: What,
    /// How it is shown.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Show it anew every second, until interrupted.
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    lb: lb_show::LoadBalancer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Gateway routers: state, since when, last error.
    Peers,
    /// BFD sessions.
    Bfd,
    /// Routes of ours in the kernel.
    Routes,
    /// VIPs: announced or not, and why.
    Vips,
    /// The last changes.
    Events,
    /// What is wrong with objects.
    Objects,
    /// Counters of each peer.
    Counters,
    /// All of the router's status.
    Status,
    /// Services of the load balancer.
    Services,
    /// Endpoints of the load balancer: state, mark, share, packets.
    Endpoints,
    /// Routes in the order in which the load balancer asks them.
    Flows,
    /// Queues of the load balancer, and what it dropped.
    Queues,
}

impl What {
    /// What is for the load balancer to answer.
    const fn of_lb(self) -> Option<Part> {
        match self {
            Self::Services => Some(Part::Services),
            Self::Endpoints => Some(Part::Endpoints),
            Self::Flows => Some(Part::Flows),
            Self::Queues => Some(Part::Queues),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns.
    Table,
    /// More columns, where there are more.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl Format {
    /// `value` as a document of this format; the columns are not for documents.
    fn document(self, value: &serde_json::Value) -> anyhow::Result<String> {
        match self {
            Self::Yaml => Ok(serde_saphyr::to_string(value)?),
            _ => Ok(serde_json::to_string_pretty(value)? + "\n"),
        }
    }
}

impl Show {
    /// Shows it once, or until interrupted.
    pub async fn run(self) -> anyhow::Result<()> {
        loop {
            let text = match self.what.of_lb() {
                Some(part) => self.of_lb(part).await?,
                None => self.of_router().await?,
            };
            if self.watch && std::io::stdout().is_terminal() {
                // Home, and clear what is below.
                print!("\x1b[H\x1b[J");
            }
            print!("{text}");
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn of_router(&self) -> anyhow::Result<String> {
        let request = match self.what {
            What::Routes => Request::Routes(usize::MAX),
            What::Events => Request::Events(0),
            What::Counters => Request::Counters,
            _ => Request::Status,
        };
        let answer = self.at.ask(&request).await?;
        match self.output {
            Format::Json | Format::Yaml => self.output.document(&value(self.what, &answer)?),
            Format::Table => Ok(table(self.what, &answer)),
            Format::Wide => Ok(wide(self.what, &answer)),
        }
    }

    async fn of_lb(&self, part: Part) -> anyhow::Result<String> {
        let state = self.lb.state().await?;
        match self.output {
            Format::Json | Format::Yaml => self.output.document(&lb_show::json(part, &state)?),
            Format::Table | Format::Wide => Ok(lb_show::table(part, &state)),
        }
    }
}

fn value(what: What, answer: &Answer) -> anyhow::Result<serde_json::Value> {
    Ok(match (what, answer) {
        (What::Peers, Answer::Status(status)) => serde_json::to_value(&status.peers)?,
        (What::Bfd, Answer::Status(status)) => serde_json::to_value(&status.bfd)?,
        (What::Vips, Answer::Status(status)) => serde_json::to_value(&status.vips)?,
        (What::Objects, Answer::Status(status)) => serde_json::to_value(&status.conditions)?,
        (_, Answer::Status(status)) => serde_json::to_value(status)?,
        (_, Answer::Routes(routes)) => serde_json::to_value(routes)?,
        (_, Answer::Events(events)) => serde_json::to_value(events)?,
        (_, Answer::Counters(counters)) => serde_json::to_value(counters)?,
        (_, other) => serde_json::to_value(other)?,
    })
}

fn wide(what: What, answer: &Answer) -> String {
    match (what, answer) {
        (What::Peers, Answer::Status(status)) => peers(status, true),
        (What::Bfd, Answer::Status(status)) => bfd(status, true),
        _ => table(what, answer),
    }
}

fn table(what: What, answer: &Answer) -> String {
    match (what, answer) {
        (What::Peers, Answer::Status(status)) => peers(status, false),
        (What::Bfd, Answer::Status(status)) => bfd(status, false),
        (What::Vips, Answer::Status(status)) => vips(status),
        (What::Objects, Answer::Status(status)) if status.conditions.is_empty() => "nothing to complain of\n".into(),
        (What::Objects, Answer::Status(status)) => lines(&status.conditions),
        (_, Answer::Status(status)) => overview(status),
        (_, Answer::Routes(routes)) => {
            let mut table = Table::new(&["TABLE", "PREFIX", "METRIC", "VIA", "STATE"]);
            for route in routes {
                table.row([
                    route.table.to_string(),
                    route.prefix.to_string(),
                    route.metric.to_string(),
                    route.via.join(", "),
                    route.state.clone(),
                ]);
            }
            table.to_string()
        }
        (_, Answer::Events(events)) => {
            let mut table = Table::new(&["TIME", "KIND", "SUBJECT", "EVENT"]);
            for event in events {
                let seconds = event.unix_ms / 1000;
                let time = format!(
                    "{:02}:{:02}:{:02}.{:03}Z",
                    seconds / 3600 % 24,
                    seconds / 60 % 60,
                    seconds % 60,
                    event.unix_ms % 1000
                );
                table.row([time, event.kind.clone(), event.subject.clone(), event.text.clone()]);
            }
            table.to_string()
        }
        (_, Answer::Counters(counters)) => {
            let mut table = Table::new(&["PEER", "COUNTER", "VALUE"]);
            for (peer, counted) in counters {
                for (name, value) in counted {
                    table.row([peer.clone(), name.clone(), value.to_string()]);
                }
            }
            table.to_string()
        }
        (_, other) => format!("{other:?}\n"),
    }
}

fn lines(texts: &[String]) -> String {
    texts.iter().flat_map(|text| [text.as_str(), "\n"]).collect()
}

fn overview(status: &Status) -> String {
    let mut text = format!(
        "Gateway {}, router id {}, {}\nload balancer: {}\nconnectivity: IPv4 {}, IPv6 {}\n",
        status.gateway,
        status.router_id.map_or_else(|| "not chosen yet".into(), |id| id.to_string()),
        status.life,
        status.lb,
        up(status.connectivity.ipv4),
        up(status.connectivity.ipv6),
    );
    text.extend(status.notes.iter().flat_map(|note| ["note: ", note.as_str(), "\n"]));
    text += &lines(&status.conditions);
    text += &lines(&status.kernel);
    format!("{text}\n{}\n{}\n{}", peers(status, false), bfd(status, false), vips(status))
}

const fn up(is_up: bool) -> &'static str {
    if is_up { "up" } else { "down" }
}

/// Such as `3h12m`, the two largest units.
fn since(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// A column: its name, whether only `-o wide` has it, and what stands in it.
type Column<T> = (&'static str, bool, fn(&T) -> String);

/// The rows by name; the first column is the name.
fn columns<T>(rows: &BTreeMap<String, T>, first: &'static str, columns: &[Column<T>], wide: bool) -> String {
    let shown: Vec<_> = columns.iter().filter(|(_, is_wide, _)| wide || !is_wide).collect();
    let heads: Vec<_> = std::iter::once(first).chain(shown.iter().map(|(head, ..)| *head)).collect();
    let mut table = Table::new(&heads);
    for (name, row) in rows {
        table.row(std::iter::once(name.clone()).chain(shown.iter().map(|(.., cell)| cell(row))));
    }
    table.to_string()
}

const PEERS: [Column<PeerView>; 16] = [
    ("ADDRESS", false, |peer| or_dash(peer.address)),
    ("INTERFACE", true, |peer| peer.interface.clone()),
    ("PROTOCOL", false, |peer| peer.protocol.clone()),
    ("LOCAL AS", true, |peer| peer.local_as.to_string()),
    ("REMOTE AS", true, |peer| peer.remote_as.to_string()),
    ("ROUTER ID", true, |peer| or_dash(peer.router_id)),
    ("STATE", false, |peer| peer.state.clone()),
    ("SINCE", false, |peer| since(peer.since_s)),
    ("NEGOTIATED", true, |peer| if peer.negotiated.is_empty() { "-".into() } else { peer.negotiated.join(", ") }),
    ("HOLD", true, |peer| format!("{}s", peer.hold_time_s)),
    ("KEEPALIVE", true, |peer| format!("{}s", peer.keepalive_s)),
    ("BFD", false, |peer| or_dash(peer.bfd.as_ref())),
    ("RECEIVED", false, |peer| peer.received.to_string()),
    ("ANNOUNCED", false, |peer| peer.announced.to_string()),
    ("DESCRIPTION", true, |peer| or_dash(peer.description.as_ref())),
    ("LAST ERROR", false, |peer| peer.last_error.clone().unwrap_or_default()),
];

const BFD: [Column<BfdView>; 9] = [
    ("STATE", false, |session| session.state.clone()),
    ("SINCE", false, |session| since(session.since_s)),
    ("DISCRIMINATOR", true, |session| session.local_discriminator.to_string()),
    ("REMOTE DISCRIMINATOR", true, |session| session.remote_discriminator.to_string()),
    ("INTERVAL", false, |session| format!("{}ms", session.transmit_interval_ms)),
    ("DETECTION", false, |session| format!("{}ms", session.detection_time_ms)),
    ("DIAGNOSTIC", false, |session| session.diagnostic.clone()),
    ("REMOTE", false, |session| session.remote_state.clone()),
    ("REMOTE DIAGNOSTIC", false, |session| session.remote_diagnostic.clone()),
];

fn peers(status: &Status, wide: bool) -> String {
    columns(&status.peers, "PEER", &PEERS, wide)
}

fn bfd(status: &Status, wide: bool) -> String {
    columns(&status.bfd, "SESSION", &BFD, wide)
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn vips(status: &Status) -> String {
    let mut table = Table::new(&["VIP", "ANNOUNCED", "REASON", "MESSAGE"]);
    for (vip, view) in &status.vips {
        let announced = if view.announced { "yes" } else { "no" };
        table.row([vip.to_string(), announced.into(), view.reason.clone(), view.message.clone()]);
    }
    table.to_string()
}

/// The flags of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  martlet explain vip 20.0.0.1      exit code 1 if it is not announced")]
pub struct Explain {
    #[command(subcommand)]
    what: Explained,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Subcommand)]
enum Explained {
    /// Why a VIP is announced, or is not.
    Vip {
        /// The VIP.
        address: IpAddr,
    },
}

impl Explain {
    /// Prints the chain; the first link that does not hold is marked.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let Explained::Vip { address } = self.what;
        let Answer::Explain(chain) = self.at.ask(&Request::Explain(address)).await? else {
            bail!("the router answered something else");
        };
        let broken = chain.iter().position(|link| !link.holds);
        for (index, link) in chain.iter().enumerate() {
            let mark = if link.holds { "ok " } else { "NO " };
            let here = if Some(index) == broken { "   <- here" } else { "" };
            println!("{mark} {:<14} {}{here}", link.question, link.answer);
        }
        Ok(if broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The flags of `reset` and `refresh`.
#[derive(Debug, clap::Args)]
pub struct Peer {
    /// The GatewayRouter.
    #[arg(value_name = "NAME")]
    name: String,
    /// What the neighbour is told (RFC 9003); of `reset` only.
    #[arg(long, default_value = "reset by an operator", value_name = "TEXT")]
    text: String,
    #[command(flatten)]
    at: Where,
}

impl Peer {
    /// Closes the session and starts anew.
    pub async fn reset(self) -> anyhow::Result<()> {
        self.at.ask(&Request::Reset(self.name.clone(), self.text)).await?;
        println!("{}: reset", self.name);
        Ok(())
    }

    /// Asks the neighbour for its routes again.
    pub async fn refresh(self) -> anyhow::Result<()> {
        self.at.ask(&Request::Refresh(self.name.clone())).await?;
        println!("{}: asked for its routes", self.name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_in_its_two_largest_units() {
        let told = [59, 61, 3_725, 90_000].map(since);
        assert_eq!(told, ["59s", "1m1s", "1h2m", "1d1h"]);
    }

    #[test]
    fn a_peer_is_shown_in_each_format() {
        let peer = martlet_router::core::PeerView { local_as: 8103, state: "Established".into(), ..Default::default() };
        let answer = Answer::Status(Box::new(Status { peers: [("gw".into(), peer)].into(), ..Status::default() }));
        let document = |format: Format| format.document(&value(What::Peers, &answer).unwrap()).unwrap();
        assert!(document(Format::Yaml).starts_with("gw:\n"), "{}", document(Format::Yaml));
        assert!(document(Format::Json).contains("\"local_as\": 8103"));
        assert!(wide(What::Peers, &answer).contains("LOCAL AS") && !table(What::Peers, &answer).contains("8103"));
    }
}
