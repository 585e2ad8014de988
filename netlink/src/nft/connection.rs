//! The socket to nftables: one batch, one answer. It blocks nothing but the time the kernel takes.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, SetElementList, SetElementMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::batch::{Batch, Part};
use super::counts;
use super::{Chain, Layer, Queue, QueueForm, Rule, Table, Watch};
use crate::datagram::{self, Reply};
use crate::{Error, filter, sys};

/// The largest datagram that the kernel sends.
const DATAGRAM_MAX: usize = 65536;
/// Replies wait in this much kernel memory.
const RECEIVE_OCTETS: i32 = 16 << 20;
/// The subsystem of a batch.
const NFTABLES: u16 = 10;

/// A connection to nftables. A batch is done when the call returns: a changed VIP takes far less than a millisecond, a
/// full map of 65537 slots a few tenths of a second.
pub struct Connection {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

const fn family(layer: Layer) -> NetfilterProtoFamily {
    match layer {
        Layer::Inet => NetfilterProtoFamily::Inet,
        Layer::Netdev => NetfilterProtoFamily::NetDev,
    }
}

impl Connection {
    /// Opens the socket, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel has no netfilter.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            sys::set_buffers(socket.as_fd(), RECEIVE_OCTETS)?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(Error::io("the socket to nftables cannot be opened"))?;
        Ok(Self { socket, sequence: 1 })
    }

    /// Makes the kernel hold `table`, in one atomic batch. With `previous`, what our own last apply left there, only the
    /// difference is sent; without it, or if that is not there any more, whatever is under the name is replaced.
    ///
    /// # Errors
    /// [`Error::Refused`] naming the part that the kernel refused; then nothing has changed.
    pub fn apply(&mut self, table: &Table, previous: Option<&Table>) -> Result<(), Error> {
        match previous.and_then(|previous| Batch::difference(table, previous)) {
            Some(batch) if batch.parts.is_empty() => Ok(()),
            Some(batch) => match self.send(&batch) {
                // Not what we left there: somebody flushed or changed it.
                Err(Error::Refused { errno: libc::ENOENT | libc::EEXIST, .. }) => self.send(&Batch::whole(table)),
                result => result,
            },
            None => self.send(&Batch::whole(table)),
        }
    }

    /// Deletes a table; none of that name is success.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Io`].
    pub fn delete(&mut self, layer: Layer, name: &str) -> Result<(), Error> {
        let mut batch = Batch::new(name, layer);
        batch.make_table();
        batch.delete_table();
        self.send(&batch)
    }

    /// Whether there is a table of that name.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Io`].
    pub fn exists(&mut self, layer: Layer, name: &str) -> Result<bool, Error> {
        let failed = format!("table {name} cannot be looked up");
        let first = self.sequence;
        let message =
            NfTablesMessage::GetTable(TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] });
        let mut octets = Vec::new();
        self.append(&mut octets, family(layer), 0, message, NLM_F_ACK);
        let replies = self.exchange(&octets, first).map_err(Error::io(&failed))?;
        match replies.into_iter().next().map(|(_, reply)| reply) {
            Some(Reply { errno: 0, .. }) => Ok(true),
            Some(Reply { errno: libc::ENOENT, .. }) => Ok(false),
            Some(Reply { errno, detail }) => Err(Error::refused(failed, errno, detail)),
            None => Err(Error::io(failed)(ErrorKind::UnexpectedEof.into())),
        }
    }

    /// What the counters of a [`Set::Counted`](super::Set::Counted) or a [`Set::Ways`](super::Set::Ways) say: packets and octets
    /// by mark.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such set, [`Error::Io`].
    pub fn counts(&mut self, layer: Layer, table: &str, set: &str) -> Result<BTreeMap<u32, (u64, u64)>, Error> {
        let failed = format!("counters of set {set} of table {table} cannot be read");
        let names = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
        let first = self.sequence;
        let mut octets = Vec::new();
        let message = NfTablesMessage::GetSetElement(SetElementMessage { attributes: names });
        self.append(&mut octets, family(layer), 0, message, NLM_F_DUMP);
        self.socket.send(&octets, 0).map_err(Error::io(&failed))?;
        let mut counts = BTreeMap::new();
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            buffer.reserve(DATAGRAM_MAX);
            // The kernel has the next part ready when the last one is read.
            self.socket.recv(&mut buffer, 0).map_err(Error::io(&failed))?;
            for message in datagram::messages(&buffer).filter(|message| counts::sequence(message) == Some(first)) {
                match counts::read(message, &mut counts) {
                    counts::Part::More => {}
                    counts::Part::Done => return Ok(counts),
                    counts::Part::Failed(errno) => return Err(Error::refused(failed, errno, String::new())),
                }
            }
        }
    }

    /// Watches what others do to tables of these names, of either layer: what this connection does makes no hint. Opens a socket in the network
    /// namespace of the calling thread, which runs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub fn watch(&self, tables: &[&str]) -> Result<Watch, Error> {
        let watch = filter::port(&self.socket).and_then(|ours| Watch::open(tables, ours));
        watch.map_err(Error::io("changes of nftables cannot be watched"))
    }

    /// Which form of a queue rule this kernel has, tried in a table that is gone before anyone sees it.
    ///
    /// # Errors
    /// [`Error::Unsupported`], naming the kernel options that would help; whatever else the kernel says.
    pub fn probe_queue(&mut self) -> Result<QueueForm, Error> {
        for form in [QueueForm::Native, QueueForm::Xtables] {
            let mut batch = Batch::new(&format!("martlet-probe-{}", std::process::id()), Layer::Inet);
            let rule = Rule::new().queue(Queue { first: 0, total: 1, bypass: false, fanout: false, form });
            batch.make_table();
            batch.make_chain("probe", &Chain::default());
            batch.add_rules("probe", &[rule]);
            batch.delete_table();
            match self.send(&batch) {
                Ok(()) => return Ok(form),
                Err(Error::Refused { errno: libc::ENOENT | libc::EOPNOTSUPP, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let text = "this kernel cannot queue packets to a program: it needs CONFIG_NFT_QUEUE, or \
                    CONFIG_NETFILTER_XT_TARGET_NFQUEUE with CONFIG_NFT_COMPAT (modules nft_queue, or xt_NFQUEUE and nft_compat)";
        Err(Error::Unsupported(text.to_owned()))
    }

    /// Sends a batch: all of its parts, or none.
    fn send(&mut self, batch: &Batch) -> Result<(), Error> {
        let parts = &batch.parts;
        let first = self.sequence;
        let mut octets = Vec::new();
        let unspecified = NetfilterProtoFamily::Unspec;
        self.append(&mut octets, unspecified, NFTABLES, ControlMessage::BatchBegin, 0);
        for part in parts {
            self.append(&mut octets, family(batch.layer), 0, part.message.clone(), part.flags | NLM_F_ACK);
        }
        self.append(&mut octets, unspecified, NFTABLES, ControlMessage::BatchEnd, 0);
        let name = parts.first().map_or_else(String::new, |part: &Part| part.what.clone());
        let failed = format!("nftables cannot be changed ({name})");
        let replies = self.exchange(&octets, first).map_err(Error::io(&failed))?;
        // The first that failed; what comes after it may fail because of it.
        let refusal = replies.iter().filter(|(_, reply)| reply.errno != 0).min_by_key(|(index, _)| *index);
        if let Some((index, reply)) = refusal {
            let part = index.checked_sub(1).and_then(|index| parts.get(index));
            let what = part.map_or_else(|| "a batch for nftables".to_owned(), |part| part.what.clone());
            return Err(Error::refused(what, reply.errno, reply.detail.clone()));
        }
        if replies.len() < parts.len() {
            return Err(Error::io(failed)(io::Error::new(ErrorKind::UnexpectedEof, "the kernel did not answer")));
        }
        Ok(())
    }

    fn append(
        &mut self,
        octets: &mut Vec<u8>,
        family: NetfilterProtoFamily,
        subsystem: u16,
        message: impl Into<netlink_packet_netfilter::NetfilterMessageInner>,
        flags: u16,
    ) {
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, subsystem), message);
        datagram::append(octets, message, NLM_F_REQUEST | flags, self.sequence);
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// Sends a batch and returns the replies, each with the index of its message. The kernel works while we send, so
    /// that all replies wait when the call is over.
    fn exchange(&mut self, octets: &[u8], first: u32) -> io::Result<Vec<(usize, Reply)>> {
        let count = usize::try_from(self.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
        let mut replies = Vec::new();
        self.socket.send(octets, 0)?;
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            buffer.reserve(DATAGRAM_MAX);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(replies),
                Err(error) => return Err(error),
            }
            for message in datagram::messages(&buffer) {
                let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(message) else { continue };
                let index = usize::try_from(message.header.sequence_number.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let NetlinkPayload::Error(error) = message.payload
                    && index < count
                {
                    replies.push((index, Reply::of(&error)));
                }
            }
        }
    }
}
