//! A name server of the tests' own, over UDP and TCP, with a script.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use hickory_resolver::proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_util::task::AbortOnDropHandle;

/// How many bytes go over UDP; what is longer is cut, and asked for again over TCP.
const UDP_BYTES_MAX: usize = 512;

/// What a question is answered with.
#[derive(Debug, Clone)]
pub enum Reply {
    /// The addresses among these that the question asks for.
    Addresses(Vec<IpAddr>),
    /// These aliases one after the other, and then the addresses of the last.
    Aliases(Vec<&'static str>, Vec<IpAddr>),
    /// The IPv4 addresses among these; questions for IPv6 addresses are dropped.
    SilenceOnV6(Vec<IpAddr>),
    /// No such name, or another code.
    Code(ResponseCode),
    /// Bytes that are no answer.
    Garbage,
    /// Nothing, ever.
    Silence,
    /// Over UDP: that it is too long for it. Over TCP nothing, ever.
    SilenceOverTcp,
}

impl Reply {
    pub fn addresses(texts: &[&str]) -> Self {
        Self::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    pub fn aliases(names: &[&'static str], texts: &[&str]) -> Self {
        let addresses = texts.iter().map(|text| text.parse().unwrap());
        Self::Aliases(names.to_vec(), addresses.collect())
    }
}

/// Tells what a name is answered with, given how often it was asked for its IPv4 addresses before.
type Script = dyn Fn(&str, usize) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    asked: Mutex<HashMap<(String, RecordType), usize>>,
}

/// Answers until it is dropped.
pub struct DnsServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _servers: [AbortOnDropHandle<()>; 2],
}

impl DnsServer {
    pub async fn start(script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        // A port that is free for both.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let shared = Arc::new(Shared { script: Box::new(script), asked: Mutex::default() });
        #[expect(clippy::disallowed_methods, reason = "aborted when the server is dropped")]
        let servers = [
            tokio::spawn(over_udp(udp, shared.clone())),
            tokio::spawn(over_tcp(tcp, shared.clone())),
        ];
        Self { address, shared, _servers: servers.map(AbortOnDropHandle::new) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often a name was asked for its IPv4 addresses.
    pub fn asked(&self, name: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked.get(&(name.to_owned(), RecordType::A)).copied().unwrap_or_default()
    }
}

async fn over_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = [0; 2_048];
    loop {
        // What a client that has gone leaves behind is no end of ours.
        let Ok((bytes, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(mut answer) = shared.answer(&buffer[..bytes], false) else { continue };
        if answer.len() > UDP_BYTES_MAX {
            let mut message = Message::from_vec(&answer).unwrap();
            message.answers.clear();
            message.metadata.truncation = true;
            answer = message.to_vec().unwrap();
        }
        let _ = socket.send_to(&answer, from).await;
    }
}

async fn over_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut served = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = shared.clone();
        served.spawn(async move {
            let _ = serve(stream, &shared).await;
        });
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    loop {
        let mut question = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut question).await?;
        if let Some(answer) = shared.answer(&question, true) {
            stream.write_u16(answer.len().try_into().unwrap()).await?;
            stream.write_all(&answer).await?;
        }
    }
}

impl Shared {
    fn answer(&self, question: &[u8], is_over_tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query = question.queries.first()?.clone();
        let name = query.name().to_ascii().to_lowercase();
        let name = name.trim_end_matches('.').to_owned();
        let before = {
            let mut asked = self.asked.lock().unwrap();
            let count = asked.entry((name.clone(), query.query_type())).or_default();
            *count += 1;
            *count - 1
        };
        let mut message =
            Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
        message.metadata.recursion_desired = true;
        message.metadata.recursion_available = true;
        message.add_query(query.clone());
        let mut owner = query.name().clone();
        let addresses = match (self.script)(&name, before) {
            Reply::Silence => return None,
            Reply::SilenceOnV6(_) if query.query_type() == RecordType::AAAA => return None,
            Reply::SilenceOverTcp if is_over_tcp => return None,
            Reply::SilenceOverTcp => {
                message.metadata.truncation = true;
                Vec::new()
            }
            Reply::Garbage => {
                let id = question.metadata.id.to_be_bytes();
                return Some([&id[..], &[0xff; 40]].concat());
            }
            Reply::Code(code) => {
                message.metadata.response_code = code;
                Vec::new()
            }
            Reply::Addresses(addresses) | Reply::SilenceOnV6(addresses) => addresses,
            Reply::Aliases(names, addresses) => {
                for alias in names {
                    let alias = Name::from_ascii(format!("{alias}.")).unwrap();
                    let data = RData::CNAME(CNAME(alias.clone()));
                    message.add_answer(Record::from_rdata(owner, TTL_S, data));
                    owner = alias;
                }
                addresses
            }
        };
        for address in addresses {
            let data = match address {
                IpAddr::V4(ip) => RData::A(ip.into()),
                IpAddr::V6(ip) => RData::AAAA(ip.into()),
            };
            if data.record_type() == query.query_type() {
                message.add_answer(Record::from_rdata(owner.clone(), TTL_S, data));
            }
        }
        Some(message.to_vec().unwrap())
    }
}

/// No answer is to be kept: the next question is asked anew.
const TTL_S: u32 = 0;
