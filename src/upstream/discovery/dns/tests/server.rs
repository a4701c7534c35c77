//! A DNS server for tests: those of this folder, and the black-box tests of the gateway.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::SOA;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// How the fake server treats a question.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mood {
    Answers,
    Fails,
    Silent,
    Garbage,
    Truncates,
}

/// A DNS server on a free port, with a zone that tests change while it runs.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

struct Zone {
    records: Vec<Record>,
    mood: Mood,
    /// Questions of this kind fail, whatever the mood.
    failing: HashSet<(String, RecordType)>,
    asked: Vec<(String, RecordType)>,
    forgets_denials: bool,
}

impl Server {
    pub async fn start(records: Vec<Record>) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // Somebody's question may come from just this port.
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = udp.local_addr().unwrap();
        let zone =
            Zone { records, mood: Mood::Answers, failing: HashSet::new(), asked: Vec::new(), forgets_denials: false };
        let server = Server { address, zone: Arc::new(Mutex::new(zone)) };
        let over_udp = server.clone();
        tokio::spawn(async move {
            let mut packet = [0; 2048];
            while let Ok((length, client)) = udp.recv_from(&mut packet).await {
                if let Some(answer) = over_udp.answer(&packet[..length], true) {
                    let _ = udp.send_to(&answer, client).await;
                }
            }
        });
        let over_tcp = server.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = tcp.accept().await {
                while let Ok(length) = socket.read_u16().await {
                    let mut packet = vec![0; length.into()];
                    if socket.read_exact(&mut packet).await.is_err() {
                        break;
                    }
                    let Some(answer) = over_tcp.answer(&packet, false) else { break };
                    let _ = socket.write_u16(answer.len() as u16).await;
                    let _ = socket.write_all(&answer).await;
                }
            }
        });
        server
    }

    fn answer(&self, packet: &[u8], udp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).ok()?;
        let query = question.queries.first()?.clone();
        let name = query.name().to_string();
        let mut zone = self.zone();
        zone.asked.push((name.clone(), query.query_type()));
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        let fails = zone.failing.contains(&(name, query.query_type()));
        match zone.mood {
            Mood::Silent => return None,
            Mood::Garbage => return Some(b"\xff\x00no DNS here".to_vec()),
            _ if fails => answer.metadata.response_code = ResponseCode::ServFail,
            Mood::Fails => answer.metadata.response_code = ResponseCode::ServFail,
            Mood::Truncates if udp => answer.metadata.truncation = true,
            Mood::Answers | Mood::Truncates => {
                let named = |record: &&Record| record.name == *query.name();
                if !zone.records.iter().any(|r| named(&r)) {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                    if zone.forgets_denials {
                        let (server, mailbox) =
                            (Name::from_ascii("ns.test.").ok()?, Name::from_ascii("ops.test.").ok()?);
                        answer.add_authority(record(
                            "test.",
                            0,
                            RData::SOA(SOA::new(server, mailbox, 1, 60, 60, 60, 0)),
                        ));
                    }
                }
                let found = zone.records.iter().filter(named).filter(|r| r.record_type() == query.query_type());
                answer.add_answers(found.cloned());
            }
        }
        answer.to_vec().ok()
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().expect("no test panicked in it")
    }

    pub fn set(&self, records: Vec<Record>) {
        self.zone().records = records;
    }

    pub fn feel(&self, mood: Mood) {
        self.zone().mood = mood;
    }

    pub fn fail(&self, name: &str, kind: RecordType) {
        self.zone().failing.insert((name.into(), kind));
    }

    /// Says that a denial holds for no time (RFC 2308); without, the resolver decides.
    pub fn forget_denials(&self) {
        self.zone().forgets_denials = true;
    }

    pub fn asked(&self) -> Vec<(String, RecordType)> {
        self.zone().asked.clone()
    }

    pub fn times_asked(&self, name: &str) -> usize {
        self.asked().iter().filter(|(asked, _)| asked == name).count()
    }
}

pub fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
}
