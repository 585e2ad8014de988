//! Around interfaces: what a neighbour entry says, and the kernel's settings under `/proc/sys/net`.
//!
//! It opens no socket; [`Kernel::neighbors`](crate::Kernel::neighbors) reads the entries.

use std::net::IpAddr;

/// What the kernel knows of an address on a link: an ARP or a neighbour discovery entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbor {
    /// The index of the interface.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Its link-layer address, when known (6 octets on Ethernet).
    pub link_layer: Option<Vec<u8>>,
    /// What the kernel thinks of it.
    pub reachability: Reachability,
}

/// The state of a neighbour entry (RFC 4861 section 7.3.2; the kernel uses it for ARP too).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reachability {
    /// Being resolved for the first time.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Never in doubt: somebody wrote it down.
    Permanent,
    /// Not confirmed lately: used until proven wrong.
    Stale,
    /// In doubt: being asked now, or about to be.
    Probe,
    /// Did not answer.
    Failed,
}

/// The kernel's settings under `/proc/sys/net`, of the network namespace of the calling thread.
pub mod sysctl {
    use std::fs;
    use std::path::PathBuf;

    use crate::Error;

    /// The value of `name` (`ipv4/ip_forward`), without the line end.
    ///
    /// # Errors
    /// [`Error::Io`], naming the setting.
    pub fn read(name: &str) -> Result<String, Error> {
        let text = fs::read_to_string(path(name)?).map_err(Error::io(format!("sysctl net/{name} cannot be read")))?;
        Ok(text.trim_end().to_owned())
    }

    /// Gives `name` a value.
    ///
    /// # Errors
    /// [`Error::Io`], naming the setting and the value.
    pub fn write(name: &str, value: &str) -> Result<(), Error> {
        fs::write(path(name)?, value).map_err(Error::io(format!("sysctl net/{name} cannot be set to {value:?}")))
    }

    /// Slashes, because interface names may hold dots; nothing outside of `/proc/sys/net`.
    fn path(name: &str) -> Result<PathBuf, Error> {
        if name.is_empty() || name.starts_with('/') || name.split('/').any(|part| part == ".." || part.is_empty()) {
            return Err(Error::Unsupported(format!("sysctl net/{name}: a relative path such as ipv4/ip_forward")));
        }
        Ok(PathBuf::from("/proc/sys/net").join(name))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_setting_is_read_and_an_unknown_one_is_named() {
            assert!(matches!(read("ipv4/ip_forward").unwrap().as_str(), "0" | "1"));
            let error = read("ipv4/conf/nosuch/rp_filter").unwrap_err().to_string();
            assert!(error.starts_with("sysctl net/ipv4/conf/nosuch/rp_filter cannot be read: No such file"), "{error}");
        }

        #[test]
        fn a_name_cannot_leave_the_network_settings() {
            for name in ["../kernel/hostname", "/etc/passwd", "", "ipv4//x"] {
                assert!(matches!(read(name), Err(Error::Unsupported(_))), "{name}");
            }
        }
    }
}
