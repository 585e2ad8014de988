//! The sysctls that forwarding VIP traffic needs: checked at start, never written.

/// A sysctl that must have a value.
struct Need {
    name: &'static str,
    wanted: &'static str,
    why: &'static str,
}

const NEEDS: [Need; 6] = [
    Need { name: "net.ipv4.conf.all.forwarding", wanted: "1", why: "IPv4 packets of VIPs are not forwarded" },
    Need { name: "net.ipv6.conf.all.forwarding", wanted: "1", why: "IPv6 packets of VIPs are not forwarded" },
    Need {
        name: "net.ipv4.fib_multipath_hash_policy",
        wanted: "1",
        why: "IPv4 flows are spread over gateways by address only",
    },
    Need {
        name: "net.ipv6.fib_multipath_hash_policy",
        wanted: "1",
        why: "IPv6 flows are spread over gateways by address only",
    },
    Need {
        name: "net.ipv4.conf.all.rp_filter",
        wanted: "0",
        why: "IPv4 packets whose way back is another interface are dropped",
    },
    Need { name: "net.ipv4.fwmark_reflect", wanted: "1", why: "answers of the kernel to VIP traffic lose their mark" },
];

/// How a pod is given its sysctls.
const WAYS: &str = "by an attachment of the tuning plugin, or by securityContext.sysctls of the pod";

/// What is not as it should be, in words; `read` gives a value by name, `None` where this kernel has none.
pub fn complaints(read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let complaint = |need: &Need| {
        let value = read(need.name)?;
        let value = value.trim();
        let Need { name, wanted, why } = need;
        (value != *wanted).then(|| format!("sysctl {name} is {value}: {why}; set {name}={wanted}: {WAYS}"))
    };
    NEEDS.iter().filter_map(complaint).collect()
}

/// The value of a sysctl of this machine.
pub fn read(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_named_with_its_remedy_and_a_missing_one_is_no_fault() {
        let all_right =
            |name: &str| NEEDS.iter().find(|need| need.name == name).map(|need| format!("{}\n", need.wanted));
        assert!(complaints(all_right).is_empty());
        assert!(complaints(|_| None).is_empty());
        let complaints =
            complaints(|name| if name.ends_with("rp_filter") { Some("2".into()) } else { all_right(name) });
        assert_eq!(
            complaints,
            ["sysctl net.ipv4.conf.all.rp_filter is 2: IPv4 packets whose way back is another interface are dropped; \
              set net.ipv4.conf.all.rp_filter=0: by an attachment of the tuning plugin, or by securityContext.sysctls of the pod"]
        );
    }
}
