//! What became of packets, counted: by route, by endpoint, by reason. Plain values; whoever shows them reads them here.
//!
//! A queue thread counts into a [`Tally`] of its own, indexed by numbers, and folds it into the names of the shared
//! [`Counters`] when it is poked (at least twice a second) and before its tables change: no lock and no name a packet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Tables;
use crate::packet::Malformed;

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// It could not be read.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// No accepted `L34Route` matches.
    #[error("no route")]
    NoRoute,
    /// The Service of the matching route has no ready endpoint of the family.
    #[error("no endpoint")]
    NoEndpoint,
    /// A later fragment whose first one did not come in time.
    #[error("first fragment missing")]
    FragmentLost,
    /// A later fragment that came before its first one, when too many others waited already.
    #[error("too many fragments wait")]
    FragmentsTooMany,
    /// It does not fit through the link to its endpoint and must not be fragmented: the sender is told.
    #[error("too big")]
    TooBig,
    /// An ICMP error about a packet that no endpoint of ours can have sent.
    #[error("ICMP error about a foreign packet")]
    ForeignError,
}

impl Reason {
    /// One word with underscores, for a metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed(malformed) => match malformed {
                Malformed::Empty => "empty",
                Malformed::Version => "ip_version",
                Malformed::TruncatedNetwork => "truncated_ip",
                Malformed::TruncatedTransport => "truncated_transport",
                Malformed::HeaderLength => "header_length",
                Malformed::TotalLength => "total_length",
                Malformed::ExtensionHeaders => "extension_headers",
                Malformed::NoNextHeader => "no_next_header",
                Malformed::FragmentEnd => "fragment_end",
                Malformed::FragmentOverlap => "fragment_overlap",
                Malformed::Transport => "transport",
            },
            Self::NoRoute => "no_route",
            Self::NoEndpoint => "no_endpoint",
            Self::FragmentLost => "fragment_lost",
            Self::FragmentsTooMany => "fragments_too_many",
            Self::TooBig => "too_big",
            Self::ForeignError => "foreign_error",
        }
    }
}

/// Packets and their octets (as the IP header says).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub octets: u64,
}

impl Count {
    fn add(&mut self, octets: u32) {
        self.packets += 1;
        self.octets += u64::from(octets);
    }

    pub(crate) fn fold(&mut self, other: Self) {
        self.packets += other.packets;
        self.octets += other.octets;
    }
}

/// All that was counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Forwarded, by `L34Route`.
    pub routes: BTreeMap<Arc<str>, Count>,
    /// Forwarded, by Service and identifier.
    pub endpoints: BTreeMap<(Arc<str>, u16), Count>,
    /// Dropped.
    pub drops: BTreeMap<Reason, u64>,
    /// Packets in each batch that was received, by queue: batches and packets.
    pub queues: BTreeMap<u16, (u64, u64)>,
    /// How long packets were with us, by queue.
    pub latencies: BTreeMap<u16, Latency>,
}

/// Bounds of a [`Latency`], microseconds; what took longer than the last one is only in its sum.
pub const BOUNDS_US: [u64; 9] = [5, 10, 20, 50, 100, 200, 500, 1000, 10_000];

/// How long packets were with us, from the call that received them to the call that gave their verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Latency {
    /// Packets by the first of [`BOUNDS_US`] that they did not exceed.
    pub buckets: [u64; BOUNDS_US.len()],
    /// All packets.
    pub packets: u64,
    /// Their times together, nanoseconds.
    pub sum_ns: u64,
}

impl Latency {
    fn add(&mut self, packets: u64, time: Duration) {
        let (ns, us) = (nanoseconds(time), nanoseconds(time) / 1000);
        let bucket = self.buckets.iter_mut().zip(BOUNDS_US).find(|(_, bound)| us < *bound);
        if let Some((bucket, _)) = bucket {
            *bucket += packets;
        }
        self.packets += packets;
        self.sum_ns += ns.saturating_mul(packets);
    }

    fn fold(&mut self, other: Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self.packets += other.packets;
        self.sum_ns += other.sum_ns;
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What one thread counted since it last folded.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By rank.
    routes: Vec<Count>,
    /// By mark, less the first mark.
    endpoints: Vec<Count>,
    drops: BTreeMap<Reason, u64>,
    batches: u64,
    packets: u64,
    latency: Latency,
}

impl Tally {
    /// A packet of `octets` went by the route of that rank to the endpoint of that mark.
    pub fn forwarded(&mut self, rank: u32, endpoint: u32, octets: u32) {
        for (counts, number) in [(&mut self.routes, rank), (&mut self.endpoints, endpoint)] {
            let Ok(number) = usize::try_from(number) else { continue };
            if counts.len() <= number {
                counts.resize(number + 1, Count::default());
            }
            if let Some(count) = counts.get_mut(number) {
                count.add(octets);
            }
        }
    }

    /// A packet was dropped.
    pub fn dropped(&mut self, reason: Reason) {
        *self.drops.entry(reason).or_default() += 1;
    }

    /// So many packets had their verdicts so long after they were received.
    pub fn judged(&mut self, packets: u64, time: Duration) {
        self.latency.add(packets, time);
    }

    /// So many packets came in one batch.
    pub fn batch(&mut self, packets: u64) {
        self.batches += 1;
        self.packets += packets;
    }

    /// Adds all to `counters` under the names of `tables`, with which it was counted, and begins again.
    pub fn fold(&mut self, queue: u16, tables: &Tables, counters: &mut Counters) {
        for (name, count) in tables.classifier().names().iter().zip(&mut self.routes) {
            counters.routes.entry(Arc::clone(name)).or_default().fold(std::mem::take(count));
        }
        for (number, count) in (0_u32..).zip(&mut self.endpoints) {
            if count.packets > 0
                && let Some((service, identifier)) = tables.endpoint(number)
            {
                counters.endpoints.entry((Arc::clone(service), identifier)).or_default().fold(std::mem::take(count));
            }
        }
        for (reason, count) in std::mem::take(&mut self.drops) {
            *counters.drops.entry(reason).or_default() += count;
        }
        let (batches, packets) = counters.queues.entry(queue).or_default();
        *batches += std::mem::take(&mut self.batches);
        *packets += std::mem::take(&mut self.packets);
        counters.latencies.entry(queue).or_default().fold(std::mem::take(&mut self.latency));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_first_bucket_that_holds_them() {
        let mut tally = Tally::default();
        tally.judged(3, Duration::from_nanos(4_999));
        tally.judged(2, Duration::from_micros(5));
        tally.judged(1, Duration::from_secs(1));
        let mut counters = Counters::default();
        tally.fold(7, &Tables::default(), &mut counters);
        let latency = counters.latencies[&7];
        assert_eq!((latency.buckets[..3].to_vec(), latency.packets), (vec![3, 2, 0], 6));
        assert_eq!(latency.sum_ns, 3 * 4_999 + 2 * 5_000 + 1_000_000_000);
        assert_eq!(latency.buckets.iter().sum::<u64>(), 5, "longer than the last bound");
    }
}
