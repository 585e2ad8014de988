//! *Sometimes*: what should have been seen at least once in a run of many seeds.
//!
//! A simulation that never does something proves nothing about it. What can never be seen here is not in the list; why not is
//! said in `docs/simulation.md`.

use std::collections::BTreeSet;

use crate::faults::What;

/// From so many seeds on it is a broken promise when something of [`wanted`] was not seen.
pub const ENOUGH: u64 = 2000;

/// RFC 4271 section 8.2.2, of the more advanced of two connections.
const TRANSITIONS: &[&str] = &[
    "Idle -> Connect",
    "Idle -> Active",
    "Connect -> Idle",
    "Connect -> Active",
    "Connect -> OpenSent",
    "Active -> Idle",
    "Active -> Connect",
    "Active -> OpenSent",
    "OpenSent -> Idle",
    "OpenSent -> Active",
    "OpenSent -> OpenConfirm",
    "OpenConfirm -> Idle",
    "OpenConfirm -> Established",
    "Established -> Idle",
];

/// NOTIFICATIONs that a pod or a gateway of ours sends: code and subcode.
const SENT: &[&str] = &[
    "1/1", "1/2", "1/3", "2/1", "2/2", "2/3", "2/4", "2/6", "2/7", "3/1", "3/10", "4/0", "5/1", "5/2", "5/3", "6/1",
    "6/2", "6/3", "6/4", "6/6", "6/7", "6/9", "6/10", "7/1",
];

/// ..and that one of them receives.
const RECEIVED: &[&str] = &["2/2", "4/0", "6/2", "6/3", "6/4", "6/6", "6/7", "6/9"];

const BFD: &[&str] = &[
    "bfd Down -> Init",
    "bfd Init -> Up",
    "bfd Down -> Up",
    "bfd Init -> Down",
    "bfd Up -> Down",
    "bfd Up -> AdminDown",
    "bfd diagnostic None",
    "bfd diagnostic DetectionTimeExpired",
    "bfd diagnostic NeighborSignaledDown",
    "bfd diagnostic AdministrativelyDown",
];

const WITHHELD: &[&str] = &[
    "Stopping",
    "LoadBalancerSilent",
    "LoadBalancerDraining",
    "UnknownToLoadBalancer",
    "NotReady",
    "NoConnectivity",
    "Damped",
];

const REST: &[&str] = &[
    "announced",
    "kernel conflict",
    "kernel refusal",
    "adoption",
    "adoption ended by time",
    "adoption ended by End-of-RIB",
    "repair",
    "treat-as-withdraw",
    "attribute-discard",
    "prefix-warning",
    "gateway naive",
    "gateway our own",
    "unresolved next hop",
    "stale route",
];

/// What should be seen over a run of many seeds.
pub fn wanted() -> BTreeSet<String> {
    let faults = What::ALL.iter().map(|what| format!("fault {}", what.name()));
    let fields = (0..crate::faults::CONFIG_FIELDS).map(|field| format!("field {field}"));
    let listed = [
        ("fsm ", TRANSITIONS),
        ("notification sent ", SENT),
        ("notification received ", RECEIVED),
        ("", BFD),
        ("withheld ", WITHHELD),
        ("", REST),
    ];
    let listed = listed.into_iter().flat_map(|(kind, all)| all.iter().map(move |one| format!("{kind}{one}")));
    faults.chain(fields).chain(listed).collect()
}
