//! One case of the matrix: a peer and a way to meet it, all features one after the other.
//!
//! A feature is asked at the other side wherever that side can tell: what the peer reports, what its log says, what tshark reads.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use super::bed::{Bed, FEEDER_AS, Martlet, Variant, is, is_of};
use crate::peer::{Heard, LARGE, Lack, MED, Make, Peer, Setup};
use crate::sys::Signal;
use crate::wait::{Seen, until};
use crate::wire::What;

/// Enough for a session with the slowest of them: `GoBGP` takes up to nine seconds, on a calm machine.
const SESSION: Duration = Duration::from_mins(1);
/// Enough for anything that follows at once.
const SOON: Duration = Duration::from_secs(20);
/// A speaker that was told to stop ends within this.
const STOP: Duration = Duration::from_secs(5);
/// What the peer says at its end.
const FAREWELL: &str = "maintenance-at-noon";

/// A cell of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// It works.
    Yes,
    /// It does not: what was seen.
    No(String),
    /// It cannot be asked: why.
    Na(String),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Established, as both sides say.
    Session,
    /// The peer reports our route with path and next hop.
    ToPeer,
    /// We report the peer's route with path and next hop.
    FromPeer,
    /// MED, large community and prepended path of the peer's route are told by us.
    AttributesIn,
    /// A third speaker's route with large community and a longer path arrives at the peer.
    Transit,
    /// What the third withdraws goes at the peer.
    WithdrawOut,
    /// What the peer withdraws goes here.
    WithdrawIn,
    /// The peer asks for all again and gets it (RFC 2918).
    Refresh,
    /// A killed peer comes back, its routes stay meanwhile (RFC 4724).
    Graceful,
    /// The peer's shutdown communication is read by us (RFC 9003).
    TextIn,
    /// We end cleanly on SIGTERM, the peer reads our shutdown communication.
    TextOut,
    /// tshark decodes all that we sent without a malformed mark.
    Tshark,
}

impl Feature {
    /// All, in the order of the table's columns.
    pub const ALL: [(Self, &'static str); 12] = [
        (Self::Session, "session"),
        (Self::ToPeer, "routes to peer"),
        (Self::FromPeer, "routes from peer"),
        (Self::AttributesIn, "attributes from peer"),
        (Self::Transit, "attributes to peer"),
        (Self::WithdrawOut, "withdraw to peer"),
        (Self::WithdrawIn, "withdraw from peer"),
        (Self::Refresh, "refresh"),
        (Self::Graceful, "graceful restart"),
        (Self::TextIn, "text from peer"),
        (Self::TextOut, "text to peer, end"),
        (Self::Tshark, "tshark"),
    ];
    /// What the smoke asks.
    pub const SMOKE: [Self; 5] = [Self::Session, Self::ToPeer, Self::FromPeer, Self::TextOut, Self::Tshark];
}

/// What a case gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which case.
    pub variant: Variant,
    /// The peer's name and version.
    pub title: String,
    /// The cells.
    pub cells: BTreeMap<Feature, Cell>,
}

impl Outcome {
    /// The features that failed.
    pub fn failures(&self) -> impl Iterator<Item = (Feature, &str)> {
        self.cells.iter().filter_map(|(feature, cell)| match cell {
            Cell::No(why) => Some((*feature, why.as_str())),
            Cell::Yes | Cell::Na(_) => None,
        })
    }
}

/// A case as it runs.
struct Case {
    bed: Bed,
    setup: Setup,
    speaker: Martlet,
    peer: Box<dyn Peer + Send>,
    third: Option<Box<dyn Peer + Send>>,
}

/// Plays a case; `features`: those that are asked.
///
/// # Errors
/// The stage cannot be built: a namespace, a program that is not installed.
pub fn play(variant: Variant, features: &[Feature]) -> Result<Outcome> {
    let mut bed = Bed::new(variant)?;
    let wants = |feature| features.contains(&feature);
    let mut setup = variant.setup(2);
    setup.graceful = wants(Feature::Graceful);
    let third =
        if wants(Feature::Transit) { Some(Make::Exabgp.start(&bed.lab, &bed.third, &variant.setup(3))?) } else { None };
    let speaker = bed.speaker(&setup)?;
    let peer = bed.peer(&setup)?;
    let title = peer.title();
    let mut case = Case { bed, setup, speaker, peer, third };
    let mut cells = BTreeMap::new();
    for (feature, _) in Feature::ALL.into_iter().filter(|(feature, _)| wants(*feature)) {
        let dead = matches!(cells.get(&Feature::Session), Some(Cell::No(_)));
        let cell = if dead && feature != Feature::Tshark {
            Cell::No("no session".into())
        } else {
            case.ask(feature).unwrap_or_else(|error| Cell::No(format!("{error:#}")))
        };
        cells.insert(feature, cell);
    }
    let outcome = Outcome { variant, title, cells };
    if outcome.failures().next().is_some() {
        case.bed.lab.mark_failed();
    }
    Ok(outcome)
}

impl Case {
    fn ask(&mut self, feature: Feature) -> Result<Cell> {
        match feature {
            Feature::Session => self.session(0),
            Feature::ToPeer => self.to_peer(),
            Feature::FromPeer => self.of_peer(),
            Feature::AttributesIn => self.attributes_in(),
            Feature::Transit => self.transit(),
            Feature::WithdrawOut => self.withdraw_out(),
            Feature::WithdrawIn => self.withdraw_in(),
            Feature::Refresh => self.refresh(),
            Feature::Graceful => self.graceful(),
            Feature::TextIn => self.text_in(),
            Feature::TextOut => self.text_out(),
            Feature::Tshark => self.tshark(),
        }
    }

    fn session(&self, after: usize) -> Result<Cell> {
        self.speaker.wait("the session", after, SESSION, |event| is(event, "established"))?;
        until("the peer to say Established", SOON, || {
            Ok(if self.peer.established()? { Seen::Yes(()) } else { Seen::not_yet("not Established") })
        })?;
        Ok(Cell::Yes)
    }

    /// Waits for a route at the peer.
    fn heard(&self, prefix: IpNet) -> Result<Heard> {
        until(&format!("{prefix} at the peer"), SOON, || {
            let mut all = self.peer.received()?;
            Ok(all.remove(&prefix).map_or_else(|| Seen::not_yet(format!("{:?}", all.keys())), Seen::Yes))
        })
    }

    fn path_of_ours(&self) -> Vec<u32> {
        if self.setup.internal() { Vec::new() } else { vec![self.setup.remote_as] }
    }

    fn to_peer(&self) -> Result<Cell> {
        let route = self.heard(self.bed.variant.ours())?;
        let wanted =
            Heard { as_path: self.path_of_ours(), next_hop: Some(self.setup.neighbor), large: route.large.clone() };
        if route != wanted {
            bail!("the peer reports {route:?}, not {wanted:?}");
        }
        Ok(Cell::Yes)
    }

    /// Waits for our report of a route of the peer: its attributes.
    fn told(&self, prefix: IpNet) -> Result<Value> {
        let event = self
            .speaker
            .wait(&format!("{prefix} from the peer"), 0, SOON, |event| is(event, "route") && is_of(event, prefix))?;
        Ok(event.get("attributes").cloned().unwrap_or_default())
    }

    fn of_peer(&self) -> Result<Cell> {
        let attributes = self.told(self.setup.announce)?;
        let path = if self.setup.internal() { vec![] } else { vec![self.setup.local_as] };
        expect(&attributes, "asPath", |value| numbers(value) == path)?;
        let hop = self.setup.address.to_string();
        expect(&attributes, "nextHop", |value| value.as_str() == Some(&hop))?;
        Ok(Cell::Yes)
    }

    fn attributes_in(&self) -> Result<Cell> {
        let attributes = self.told(self.bed.variant.tagged(2))?;
        expect(&attributes, "med", |value| value.as_u64() == Some(u64::from(MED)))?;
        expect(&attributes, "largeCommunities", |value| value.get(0).and_then(Value::as_str) == Some(LARGE))?;
        let path = if self.setup.internal() { vec![] } else { vec![self.setup.local_as; 3] };
        expect(&attributes, "asPath", |value| numbers(value) == path)?;
        Ok(Cell::Yes)
    }

    fn transit(&self) -> Result<Cell> {
        let route = self.heard(self.bed.variant.tagged(3))?;
        let mut path = self.path_of_ours();
        path.extend([FEEDER_AS; 3]);
        if route.as_path != path || !route.large.contains(LARGE) {
            bail!("the peer reports {route:?}; sent were the path {path:?} and the large community {LARGE}");
        }
        Ok(Cell::Yes)
    }

    fn withdraw_out(&self) -> Result<Cell> {
        let Some(third) = &self.third else { bail!("nobody announces") };
        let prefix = self.bed.variant.plain(3);
        self.heard(prefix)?;
        third.withdraw()?;
        until(&format!("{prefix} to go at the peer"), SOON, || {
            let all = self.peer.received()?;
            Ok(if all.contains_key(&prefix) { Seen::not_yet(format!("{all:?}")) } else { Seen::Yes(()) })
        })?;
        // The rest stayed.
        self.heard(self.bed.variant.tagged(3))?;
        Ok(Cell::Yes)
    }

    fn withdraw_in(&self) -> Result<Cell> {
        self.peer.withdraw()?;
        let prefix = self.setup.announce;
        let gone = |event: &Value| is(event, "withdrawn") && is_of(event, prefix);
        self.speaker.wait(&format!("{prefix} to be withdrawn"), 0, SOON, gone)?;
        Ok(Cell::Yes)
    }

    /// Why the peer cannot, if it cannot.
    fn lack(&self, lack: Lack) -> Option<Cell> {
        let all = self.peer.lacks().iter();
        all.filter(|(one, _)| *one == lack).map(|(_, why)| Cell::Na((*why).to_owned())).next()
    }

    fn refresh(&mut self) -> Result<Cell> {
        if let Some(cell) = self.lack(Lack::Refresh) {
            return Ok(cell);
        }
        let since = SystemTime::now();
        self.peer.refresh()?;
        let (ours, source, peer) = (self.bed.variant.ours(), self.setup.neighbor, self.setup.address);
        self.bed.capture.wait("our route once more", since, SOON, |event| {
            let again = matches!(&event.what, What::Update { announced, .. } if announced.contains(&ours));
            again && event.source == source && event.destination == peer
        })?;
        if !self.peer.established()? {
            bail!("the session ended");
        }
        Ok(Cell::Yes)
    }

    /// Kills the peer and starts it again. Returns how many events there were before.
    fn restart(&mut self, restarted: bool) -> Result<usize> {
        let before = self.speaker.events()?.len();
        Bed::kill(&self.bed.theirs, self.peer.as_ref())?;
        let setup = Setup { restarted, ..self.setup.clone() };
        self.peer = self.bed.peer(&setup)?;
        Ok(before)
    }

    fn graceful(&mut self) -> Result<Cell> {
        if let Some(cell) = self.lack(Lack::Graceful) {
            return Ok(cell);
        }
        let before = self.restart(true)?;
        self.session(before)?;
        let since: Vec<Value> = self.speaker.events()?.split_off(before);
        let back = since.iter().position(|event| is(event, "established")).unwrap_or_default();
        let kept = self.bed.variant.tagged(2);
        if let Some(lost) = since.iter().take(back).find(|event| is(event, "withdrawn") && is_of(event, kept)) {
            bail!("{kept} went before the peer was back: {lost}");
        }
        // What it did not announce again by its End-of-RIB goes; one that is told its routes from outside may be late with them.
        self.speaker.wait("the End-of-RIB", before, SESSION, |event| is(event, "endOfRib"))?;
        until(&format!("{kept} to be the peer's again"), SOON, || {
            let since = self.speaker.events()?.split_off(before);
            let last = since.into_iter().rfind(|event| is_of(event, kept));
            Ok(last
                .filter(|event| is(event, "withdrawn"))
                .map_or(Seen::Yes(()), |event| Seen::not_yet(event.to_string())))
        })?;
        Ok(Cell::Yes)
    }

    fn text_in(&mut self) -> Result<Cell> {
        let before = self.speaker.events()?.len();
        let lack = self.lack(Lack::SendText);
        if lack.is_none() {
            self.peer.shut_down(FAREWELL)?;
            let text = |event: &Value| event.get("text").and_then(Value::as_str).map(str::to_owned);
            self.speaker.wait("the peer's text", before, SOON, |event| {
                is(event, "closed") && text(event).is_some_and(|text| text.contains(FAREWELL))
            })?;
        }
        let before = self.restart(false)?;
        self.session(before)?;
        Ok(lack.unwrap_or(Cell::Yes))
    }

    fn text_out(&mut self) -> Result<Cell> {
        let since = SystemTime::now();
        if let Some(third) = &self.third {
            // It has read its End: what follows is between the two.
            Bed::kill(&self.bed.third, third.as_ref())?;
        }
        let start = Instant::now();
        self.speaker.process.signal(Signal::Term)?;
        let status = self.speaker.process.wait(STOP)?;
        if !status.success() {
            bail!("martlet speaker ended with {status} after {:?}", start.elapsed());
        }
        let peer = self.setup.address;
        self.bed.capture.wait("our NOTIFICATION", since, SOON, |event| {
            // Administrative shutdown; in a hard reset (RFC 8538) if the two agreed on that.
            matches!(event.what, What::Notification(6, 2 | 9)) && event.destination == peer
        })?;
        if let Some(cell) = self.lack(Lack::ReadText) {
            return Ok(cell);
        }
        until("our text at the peer", SOON, || {
            let reasons = self.peer.reasons()?;
            let read = reasons.contains("\"shutdown\"") || reasons.trim() == "shutdown";
            Ok(if read { Seen::Yes(()) } else { Seen::not_yet(reasons) })
        })?;
        Ok(Cell::Yes)
    }

    fn tshark(&self) -> Result<Cell> {
        self.bed.capture.stop()?;
        let path = self.bed.capture.path().to_string_lossy().into_owned();
        let ours = self.setup.neighbor;
        let source = if ours.is_ipv4() { "ip.src" } else { "ipv6.src" };
        let decode = format!("tcp.port=={},bgp", self.setup.port);
        let filter = format!("{source} == {ours} && (bgp || _ws.malformed)");
        let mut arguments = vec!["-r", &path, "-n", "-d", &decode, "-Y", &filter, "-T", "fields"];
        for field in ["frame.number", "bgp.type", "_ws.malformed", "_ws.expert.severity", "_ws.expert.message"] {
            arguments.extend(["-e", field]);
        }
        let said = self.bed.fabric.output("tshark", &arguments)?;
        if said.lines().count() < 3 {
            bail!("tshark reads {} packets with BGP of ours: {said}", said.lines().count());
        }
        // The severity `error` in Wireshark's numbers.
        let bad = |line: &&str| {
            let mut fields = line.split('\t').skip(2);
            let malformed = fields.next().is_some_and(|field| !field.is_empty());
            malformed || fields.next().is_some_and(|field| field.split(',').any(|one| one == "8388608"))
        };
        if let Some(line) = said.lines().find(bad) {
            bail!("tshark: {line}");
        }
        Ok(Cell::Yes)
    }
}

fn numbers(value: &Value) -> Vec<u32> {
    let text = value.to_string();
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

fn expect(attributes: &Value, key: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    let value = attributes.get(key).cloned().unwrap_or_default();
    if !holds(&value) {
        bail!("we report {key} {value} in {attributes}");
    }
    Ok(())
}
