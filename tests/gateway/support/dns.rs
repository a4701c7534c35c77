//! A DNS server whose zone changes while it runs.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SOA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;

pub struct Dns {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

#[derive(Default)]
struct Zone {
    records: Vec<Record>,
    failing: bool,
    questions: usize,
}

impl Dns {
    pub async fn start(records: Vec<Record>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port for the DNS server");
        let address = socket.local_addr().expect("its address");
        let zone = Arc::new(Mutex::new(Zone { records, ..Zone::default() }));
        let answering = zone.clone();
        tokio::spawn(async move {
            let mut packet = [0; 2048];
            while let Ok((length, client)) = socket.recv_from(&mut packet).await {
                let answer = answering.lock().expect("no test panicked in it").answer(&packet[..length]);
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, client).await;
                }
            }
        });
        Dns { address, zone }
    }

    pub fn set(&self, records: Vec<Record>) {
        self.zone.lock().unwrap().records = records;
    }

    /// Whether every question is answered with SERVFAIL.
    pub fn fail(&self, failing: bool) {
        self.zone.lock().unwrap().failing = failing;
    }

    pub fn questions(&self) -> usize {
        self.zone.lock().unwrap().questions
    }
}

impl Zone {
    fn answer(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).ok()?;
        let query = question.queries.first()?.clone();
        self.questions += 1;
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        let named: Vec<_> = self.records.iter().filter(|record| record.name == *query.name()).collect();
        if self.failing {
            answer.metadata.response_code = ResponseCode::ServFail;
        } else if named.is_empty() {
            answer.metadata.response_code = ResponseCode::NXDomain;
            // Says how long the denial holds (RFC 2308): not at all.
            let (server, mailbox) = (Name::from_ascii("ns.test.").ok()?, Name::from_ascii("hostmaster.test.").ok()?);
            answer.add_authority(record("test.", RData::SOA(SOA::new(server, mailbox, 1, 60, 60, 60, 0))));
        }
        if !self.failing {
            answer.add_answers(named.into_iter().filter(|record| record.record_type() == query.query_type()).cloned());
        }
        answer.to_vec().ok()
    }
}

pub fn a(name: &str, address: IpAddr) -> Record {
    let IpAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    record(name, RData::A(A(address)))
}

pub fn srv(name: &str, priority: u16, weight: u16, port: u16, host: &str) -> Record {
    record(name, RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(host).unwrap())))
}

fn record(name: &str, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), 0, data)
}
