//! A neighbour that says anything: the octets of a session, from its first OPEN on, cut anywhere.
//!
//! The first octet chooses how far the session has come before the noise begins, and whether time passes in between. Held:
//! no panic, no deadline left in the past, no connection that is heard after its close, a bounded number of outputs.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use martlet_bgp::{
    ConnectionId, Endpoints, Export, Family, Import, Input, Local, NeighborConfig, NeighborId, Output, Speaker, Ticket,
};
use martlet_clock::Instant;

/// OPEN of AS 65001 at 10.0.0.2: both families, refresh, four octets.
const OPEN: &[u8] = &[
    1, 4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 2, 22, 2, 20, 1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 0, 0xfd, 0xe9,
];

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap_or(u16::MAX);
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

struct Driver {
    speaker: Speaker,
    now: Instant,
    connection: Option<ConnectionId>,
}

impl Driver {
    fn hear(&mut self, input: Input<'_>) {
        self.speaker.handle(self.now, input);
        self.settle();
    }

    fn settle(&mut self) {
        let mut buffer = BytesMut::new();
        for round in 0.. {
            assert!(round < 10_000, "outputs without end");
            let Some(output) = self.speaker.poll() else { break };
            match output {
                Output::Accept(_, id) => self.connection = Some(id),
                Output::Ready(id) => {
                    buffer.clear();
                    while self.speaker.transmit(self.now, id, &mut buffer, 65_536) && buffer.len() < 1 << 20 {}
                }
                Output::Close(id) if self.connection == Some(id) => self.connection = None,
                Output::RoutesChanged => while !self.speaker.changed(64).is_empty() {},
                _ => (),
            }
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += std::time::Duration::from_secs(seconds);
        for round in 0.. {
            assert!(round < 1_000, "a deadline that stays in the past");
            if self.speaker.deadline().is_none_or(|deadline| deadline > self.now) {
                break;
            }
            self.hear(Input::Timeout);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [choice, noise @ ..] = data else { return };
    let mut driver = Driver {
        speaker: Speaker::new(Local { router_id: Ipv4Addr::new(10, 0, 0, 1), forwarding_preserved: false }, 7),
        now: Instant::from_millis(1_000),
        connection: None,
    };
    let neighbor = NeighborId::new("gateway");
    let config = NeighborConfig {
        passive: true,
        import: Import::All,
        export: Export { transit: Import::All, ..Export::default() },
        ..NeighborConfig::new(65000, 65001, [Family::Ipv4, Family::Ipv6])
    };
    driver.hear(Input::SetNeighbors(&BTreeMap::from([(neighbor.clone(), config)])));
    driver.hear(Input::SetAnnounced(&BTreeSet::from(["20.0.0.1/32".parse().expect("a prefix")])));
    let ends = Endpoints {
        local: "10.0.0.1:179".parse().expect("an address"),
        remote: "10.0.0.2:40000".parse().expect("an address"),
        local_link_local: None,
        local_other: None,
    };
    driver.hear(Input::Incoming(Ticket(1), &neighbor, ends));
    if choice & 1 == 1 {
        if let Some(id) = driver.connection {
            driver.hear(Input::Received(id, &message(1, OPEN)));
        }
        if choice & 2 == 2
            && let Some(id) = driver.connection
        {
            driver.hear(Input::Received(id, &message(4, &[])));
        }
    }
    // With this bit the noise is the body of one message of each kind, so that the fuzzer need not find marker and length.
    let framed: Vec<u8> = if choice & 4 == 4 {
        noise.split_first().map(|(kind, body)| message(*kind, body.get(..4077).unwrap_or(body))).unwrap_or_default()
    } else {
        noise.to_vec()
    };
    let step = usize::from(choice >> 3) + 1;
    for piece in framed.chunks(step * 16) {
        let Some(id) = driver.connection else { break };
        driver.hear(Input::Received(id, piece));
    }
    driver.pass(1);
    driver.pass(200);
    let _ = driver.speaker.status();
});
