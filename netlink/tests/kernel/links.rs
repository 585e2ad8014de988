//! Links, addresses, neighbours and settings.

use std::time::Duration;

use martlet_netlink::link::{Neighbor, Reachability, sysctl};
use martlet_netlink::{Kernel, NeighborChange, Neighbors};

use crate::sys::{in_namespace, ip};
use crate::{index, owner, two_links};

#[test]
fn a_snapshot_shows_names_carrier_and_addresses() {
    in_namespace(async || {
        let (a, b) = two_links();
        ip("link set right-far down");
        ip("link set left down");
        ip("link set left name ext-vlan");
        ip("link set ext-vlan mtu 1400 up");
        ip("link set right-far name renamed");
        ip("addr add 203.0.113.1 peer 203.0.113.2/32 dev ext-vlan");
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let links = kernel.snapshot().await.unwrap().links;
        let (a, b, far) = (&links[&a], &links[&b], &links[&index("renamed")]);
        assert_eq!((&*a.name, a.up, a.carrier, a.mtu), ("ext-vlan", true, true, 1400));
        assert!(a.addresses.contains(&"192.0.2.1/24".parse().unwrap()), "{a:?}");
        assert!(a.addresses.contains(&"203.0.113.1/32".parse().unwrap()), "{a:?}");
        assert_eq!((&*b.name, b.up, b.carrier), ("right", true, false));
        assert_eq!((&*far.name, far.up, far.carrier), ("renamed", false, false));
    });
}

#[test]
fn an_address_counts_only_after_duplicate_address_detection() {
    in_namespace(async || {
        let (a, _) = two_links();
        sysctl::write("ipv6/conf/left/dad_transmits", "100").unwrap();
        ip("addr add 2001:db8::7/64 dev left");
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let addresses = kernel.snapshot().await.unwrap().links[&a].addresses.clone();
        assert!(!addresses.contains(&"2001:db8::7/64".parse().unwrap()), "{addresses:?}");
        assert!(addresses.contains(&"2001:db8::1/64".parse().unwrap()), "{addresses:?}");
    });
}

/// The far end of link `left`, in a named network namespace that goes when its owner does, however the test ends.
struct Far(String);

impl Far {
    fn new(name: &str) -> Self {
        let name = format!("martlet-far-{name}-{}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("link set left-far netns {name}"));
        Self(name)
    }

    /// From now on it answers.
    fn take_addresses(&self) {
        self.ip("addr add 192.0.2.2/24 dev left-far");
        self.ip("addr add 2001:db8::2/64 dev left-far nodad");
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
    }
}

#[test]
fn a_probe_finds_who_answers_and_who_does_not() {
    in_namespace(async || {
        let (a, _) = two_links();
        let far = Far::new("probe");
        far.take_addresses();
        far.ip("link set left-far up");
        sysctl::write("ipv4/neigh/left/retrans_time_ms", "50").unwrap();
        sysctl::write("ipv6/neigh/left/retrans_time_ms", "50").unwrap();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let all = ["192.0.2.2", "2001:db8::2", "192.0.2.3", "2001:db8::3"].map(|text| text.parse().unwrap());
        for round in 0..2 {
            for address in all {
                kernel.probe_neighbor(a, address).unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            for (address, answers) in all.into_iter().zip([true, true, false, false]) {
                let expected = if answers { Reachability::Reachable } else { Reachability::Failed };
                wait_for(&mut kernel, a, address, expected).await;
            }
        }
        let error = kernel.probe_neighbor(9999, all[0]).unwrap_err().to_string();
        assert!(error.starts_with("the kernel refuses a probe of 192.0.2.2 on interface 9999"), "{error}");
    });
}

/// The kernel asks once a second: who answers from now on is known at once only if it asks anew.
#[test]
fn what_was_asked_for_in_vain_is_asked_for_anew() {
    in_namespace(async || {
        let (a, b) = two_links();
        let far = Far::new("forget");
        far.ip("link set left-far up");
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let all = ["192.0.2.2", "2001:db8::2"].map(|text| text.parse().unwrap());
        for address in all {
            kernel.probe_neighbor(a, address).unwrap();
            wait_for(&mut kernel, a, address, Reachability::Incomplete).await;
        }
        let known = async |kernel: &mut Kernel| {
            let entries = kernel.neighbors().await.unwrap();
            entries.iter().filter(|entry| entry.interface == a && all.contains(&entry.address)).count()
        };
        kernel.forget_unresolved(&[b].into()).await.unwrap();
        assert_eq!(known(&mut kernel).await, 2, "another link's");
        kernel.forget_unresolved(&[a].into()).await.unwrap();
        assert_eq!(known(&mut kernel).await, 0);
        far.take_addresses();
        for address in all {
            wait_for(&mut kernel, a, address, Reachability::Reachable).await;
        }
        kernel.forget_unresolved(&[a].into()).await.unwrap();
        assert_eq!(known(&mut kernel).await, 2, "those that answered");
    });
}

#[test]
fn what_becomes_of_a_neighbor_is_told_and_what_is_written_down_is_forgotten_on_demand() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let mut changes = Neighbors::watch().unwrap();
        let all = ["192.0.0.8", "100::8"].map(|text| text.parse().unwrap());
        let mut told = Vec::new();
        let mut until = async |wanted: &NeighborChange| {
            loop {
                if let Some(at) = told.iter().position(|one| one == wanted) {
                    told.drain(..=at);
                    return;
                }
                let next = tokio::time::timeout(Duration::from_secs(30), changes.changes()).await;
                told.extend(next.unwrap_or_else(|_| panic!("{wanted:?} is not told")));
            }
        };
        for address in all {
            for last in [1, 2] {
                let link_layer = vec![2, 0, 0, 0, 0, last];
                kernel.write_neighbor(a, address, &link_layer).unwrap();
                let (link_layer, reachability) = (Some(link_layer), Reachability::Permanent);
                until(&NeighborChange::Is(Neighbor { interface: a, address, link_layer, reachability })).await;
            }
        }
        ip("neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev right nud permanent");
        kernel.write_neighbor(b, all[0], &[2, 0, 0, 0, 0, 2]).unwrap();
        kernel.write_neighbor(b, all[1], &[2, 0, 0, 0, 0, 3]).unwrap();
        kernel.forget_neighbors(&all, &[2, 0, 0, 0, 0, 2]).await.unwrap();
        for (interface, address) in [(a, all[0]), (a, all[1])] {
            until(&NeighborChange::Gone(interface, address)).await;
        }
        let left = kernel.neighbors().await.unwrap();
        let others: Vec<u32> =
            left.iter().filter(|entry| all.contains(&entry.address)).map(|entry| entry.interface).collect();
        assert_eq!(others, [b], "the one that has another place: {left:?}");
        assert!(left.iter().any(|entry| entry.address.to_string() == "192.0.2.77"), "nothing else: {left:?}");
        let error = kernel.write_neighbor(9999, all[0], &[0; 6]).unwrap_err().to_string();
        assert!(error.starts_with("the kernel refuses neighbour 192.0.0.8 on interface 9999"), "{error}");
    });
}

async fn wait_for(kernel: &mut Kernel, interface: u32, address: std::net::IpAddr, reachability: Reachability) {
    for _ in 0..25 {
        let entries = kernel.neighbors().await.unwrap();
        let found = entries.iter().find(|entry| entry.interface == interface && entry.address == address);
        if found.is_some_and(|entry| entry.reachability == reachability) {
            return;
        }
        // The link may have been without carrier a moment ago: ask again.
        kernel.probe_neighbor(interface, address).unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    panic!("{address} is not {reachability:?}");
}
