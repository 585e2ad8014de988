//! Leader election by a Lease: one replica acts, the others watch and wait.
//!
//! The clocks of the replicas are not compared: who does not hold the Lease waits until it has not changed for its whole duration
//! by the own clock. [`Election`] is pure; [`elect`] asks and tells the server.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

/// The name of the Lease, in the namespace of the controller.
pub const NAME: &str = "martlet-controller";

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long a Lease holds that is not renewed.
    pub duration: Duration,
    /// After how long without a successful renewal the leader stops to act.
    pub deadline: Duration,
    /// How often the leader renews, and others look.
    pub retry: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { duration: Duration::from_secs(15), deadline: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// What to write now.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing: someone else leads.
    Wait,
    /// This, and whoever writes it leads.
    Write(LeaseSpec),
}

/// What one replica knows of the election.
#[derive(Clone, Debug)]
pub struct Election {
    me: String,
    times: Times,
    /// What was seen last (holder and time of renewal), and since when by our clock.
    seen: Option<(Option<String>, Option<MicroTime>, Instant)>,
    renewed: Option<Instant>,
}

impl Election {
    /// A replica that knows nothing yet. `me` must be unique among the replicas.
    pub fn new(me: &str, times: Times) -> Self {
        Self { me: me.to_owned(), times, seen: None, renewed: None }
    }

    /// The Lease was read at `now`; `time` is the time of day.
    pub fn read(&mut self, lease: Option<&LeaseSpec>, now: Instant, time: &MicroTime) -> Step {
        let holder = lease.and_then(|lease| lease.holder_identity.clone()).filter(|holder| !holder.is_empty());
        let renewal = lease.and_then(|lease| lease.renew_time.clone());
        let same = self.seen.as_ref().is_some_and(|(h, r, _)| (h, r) == (&holder, &renewal));
        if !same {
            self.seen = Some((holder.clone(), renewal, now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, _, since)| *since);
        let held = lease.and_then(|lease| lease.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
        let held = held.map_or(self.times.duration, Duration::from_secs);
        let mine = holder.as_deref() == Some(self.me.as_str());
        if !mine {
            self.renewed = None;
            if holder.is_some() && now.duration_since(since) < held {
                return Step::Wait;
            }
        }
        let before = lease.cloned().unwrap_or_default();
        let acquired = if mine { before.acquire_time } else { Some(time.clone()) };
        let changes = before.lease_transitions.unwrap_or(0);
        Step::Write(LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(self.times.duration.as_secs().max(1)).ok(),
            acquire_time: acquired,
            renew_time: Some(time.clone()),
            lease_transitions: Some(if mine { changes } else { changes.saturating_add(1) }),
            ..LeaseSpec::default()
        })
    }

    /// What [`Step::Write`] said was written; `asked` is when the request left.
    pub const fn written(&mut self, asked: Instant) {
        self.renewed = Some(asked);
    }

    /// Whether we lead at `now`.
    pub fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now.duration_since(renewed) < self.times.deadline)
    }
}

/// Takes part in the election until nobody listens; then gives up the Lease, so that the next need not wait.
pub async fn elect(client: Client, namespace: String, me: String, times: Times, leads: watch::Sender<bool>) {
    let api = Api::<Lease>::namespaced(client, &namespace);
    let mut election = Election::new(&me, times);
    let mut fault = None;
    loop {
        let attempt = tokio::time::timeout(times.deadline, attempt(&api, &mut election)).await;
        let new =
            attempt.map_or_else(|_| Some("no answer".to_owned()), |result| result.err().map(|error| error.to_string()));
        if let Some(error) = new.as_ref().filter(|_| new != fault) {
            tracing::warn!(error, "lease {NAME}: cannot be read or written");
        }
        fault = new;
        let now = election.leads(Instant::now());
        leads.send_if_modified(|before| std::mem::replace(before, now) != now);
        tokio::select! {
            biased;
            () = leads.closed() => break,
            () = tokio::time::sleep(times.retry) => {}
        }
    }
    if election.leads(Instant::now()) {
        let _ = tokio::time::timeout(times.retry, release(&api, &me)).await;
    }
}

async fn attempt(api: &Api<Lease>, election: &mut Election) -> kube::Result<()> {
    let asked = Instant::now();
    let lease = api.get_opt(NAME).await?;
    let time = MicroTime(Timestamp::now());
    let Step::Write(spec) = election.read(lease.as_ref().and_then(|lease| lease.spec.as_ref()), asked, &time) else {
        return Ok(());
    };
    let params = PostParams::default();
    let written = if let Some(lease) = lease {
        // The version that was read is sent back: of two who write, one is refused.
        api.replace(NAME, &params, &Lease { spec: Some(spec), ..lease }).await
    } else {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        api.create(&params, &Lease { metadata, spec: Some(spec) }).await
    };
    match written {
        Ok(_) => election.written(asked),
        // Another was faster: the next look shows who.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn release(api: &Api<Lease>, me: &str) -> kube::Result<()> {
    let Some(mut lease) = api.get_opt(NAME).await? else { return Ok(()) };
    let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
    if spec.holder_identity.as_deref() == Some(me) {
        spec.holder_identity = None;
        api.replace(NAME, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).unwrap())
    }

    fn written(step: Step) -> LeaseSpec {
        match step {
            Step::Write(spec) => spec,
            Step::Wait => panic!("it waits"),
        }
    }

    #[test]
    fn the_first_leads_and_the_second_waits() {
        let start = Instant::now();
        let (mut a, mut b) = (Election::new("a", Times::default()), Election::new("b", Times::default()));
        let lease = written(a.read(None, start, &time(0)));
        a.written(start);
        assert!(a.leads(start));
        assert_eq!(b.read(Some(&lease), start, &time(0)), Step::Wait);
        assert!(!b.leads(start));
    }

    #[test]
    fn a_leader_that_falls_silent_is_followed_after_the_duration_by_the_own_clock() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut a, mut b) = (Election::new("a", Times::default()), Election::new("b", Times::default()));
        // The clock of a is a day ahead: that must not matter.
        let lease = written(a.read(None, at(0), &time(86_400)));
        a.written(at(0));
        assert_eq!(b.read(Some(&lease), at(5), &time(5)), Step::Wait);
        assert_eq!(b.read(Some(&lease), at(19), &time(19)), Step::Wait);
        let lease = written(b.read(Some(&lease), at(20), &time(20)));
        b.written(at(20));
        assert_eq!((lease.holder_identity.as_deref(), lease.lease_transitions), (Some("b"), Some(2)));
        assert!(b.leads(at(20)) && !a.leads(at(10)), "a stopped before b began");
        assert_eq!(a.read(Some(&lease), at(21), &time(86_421)), Step::Wait);
    }

    #[test]
    fn a_renewed_lease_is_not_taken() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut a, mut b) = (Election::new("a", Times::default()), Election::new("b", Times::default()));
        let mut lease = written(a.read(None, at(0), &time(0)));
        for second in (2_u32..60).step_by(2) {
            lease = written(a.read(Some(&lease), at(u64::from(second)), &time(i64::from(second))));
            assert_eq!(lease.lease_transitions, Some(1));
            assert_eq!(b.read(Some(&lease), at(u64::from(second)), &time(0)), Step::Wait);
        }
    }

    #[test]
    fn a_lease_that_was_given_up_is_taken_at_once() {
        let start = Instant::now();
        let mut b = Election::new("b", Times::default());
        let free = LeaseSpec { lease_duration_seconds: Some(15), ..LeaseSpec::default() };
        assert_eq!(written(b.read(Some(&free), start, &time(0))).holder_identity.as_deref(), Some("b"));
    }
}
