use std::collections::BTreeSet;

use hickory_proto::op::{DnsRequestOptions, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;

const PATIENCE: Duration = Duration::from_secs(3);

fn name(number: u32) -> Name {
    Name::from_ascii(format!("n{number}.example.com.")).unwrap()
}

fn request(number: u32) -> DnsRequest {
    DnsRequest::from_query(Query::query(name(number), RecordType::A), DnsRequestOptions::default())
}

/// What an honest server says: 1.1.0.`number`.
fn answer(question: &Message, number: u8) -> Message {
    let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    let query = question.queries[0].clone();
    answer.add_answer(Record::from_rdata(query.name().clone(), 60, RData::A(A::new(1, 1, 0, number))));
    answer.add_query(query);
    answer
}

fn said(response: &DnsResponse) -> String {
    response.answers[0].data.to_string()
}

struct Server(UdpSocket);

impl Server {
    async fn start() -> (Self, Udp) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let udp = Udp::new(socket.local_addr().unwrap(), PATIENCE);
        (Self(socket), udp)
    }

    async fn question(&self) -> (Message, SocketAddr) {
        let mut buffer = [0; 512];
        let (length, from) = self.0.recv_from(&mut buffer).await.unwrap();
        (Message::from_vec(&buffer[..length]).unwrap(), from)
    }

    async fn send(&self, message: &Message, to: SocketAddr) {
        self.0.send_to(&message.to_vec().unwrap(), to).await.unwrap();
    }
}

#[tokio::test]
async fn answers_find_their_questions_in_any_order() {
    let (server, udp) = Server::start().await;
    let asked = futures_util::future::join_all((0..100).map(|number| {
        let udp = &udp;
        async move { udp.ask(&request(number)).await.map(|response| said(&response)) }
    }));
    let serving = async {
        let mut questions = Vec::new();
        for _ in 0..100 {
            questions.push(server.question().await);
        }
        for (question, from) in questions.iter().rev() {
            let label = question.queries[0].name().iter().next().unwrap().to_vec();
            let number = String::from_utf8(label).unwrap()[1..].parse().unwrap();
            server.send(&answer(question, number), *from).await;
        }
        questions.iter().map(|(_, from)| from.port()).collect::<BTreeSet<_>>()
    };
    let (answers, ports) = tokio::join!(asked, serving);
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), format!("1.1.0.{number}"));
    }
    // A few more where several were opened for the same place at once.
    assert!((2..=100).contains(&ports.len()), "{ports:?}");
}

#[tokio::test]
async fn what_does_not_answer_the_question_is_dropped() {
    let asked = request(1);
    let (server, udp) = Server::start().await;
    let serving = async {
        let (question, from) = server.question().await;
        let mut other_number = answer(&question, 66);
        other_number.metadata.id ^= 1;
        server.send(&other_number, from).await;
        let mut other_name = answer(&question, 66);
        other_name.queries = vec![Query::query(name(7), RecordType::A)];
        server.send(&other_name, from).await;
        let mut other_kind = answer(&question, 66);
        other_kind.queries = vec![Query::query(name(1), RecordType::AAAA)];
        server.send(&other_kind, from).await;
        let mut without_question = answer(&question, 66);
        without_question.queries = Vec::new();
        server.send(&without_question, from).await;
        server.0.send_to(b"x", from).await.unwrap();
        server.0.send_to(&[0xff; 40], from).await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        stranger.send_to(&answer(&question, 66).to_vec().unwrap(), from).await.unwrap();
        server.send(&answer(&question, 1), from).await;
    };
    let (response, ()) = tokio::join!(udp.ask(&asked), serving);
    assert_eq!(said(&response.unwrap()), "1.1.0.1");
}

#[tokio::test]
async fn a_lost_question_is_sent_again_and_an_error_needs_no_question() {
    let asked = request(1);
    let (server, udp) = Server::start().await;
    let serving = async {
        let (first, _) = server.question().await;
        let (again, from) = server.question().await;
        assert_eq!(first, again);
        let mut answer = Message::new(again.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.response_code = ResponseCode::FormErr;
        server.send(&answer, from).await;
    };
    let (response, ()) = tokio::join!(udp.ask(&asked), serving);
    assert_eq!(response.unwrap().metadata.response_code, ResponseCode::FormErr);
}

#[tokio::test]
async fn nobody_at_the_address_is_a_failure_at_once_and_silence_one_in_time() {
    let (server, mut udp) = Server::start().await;
    udp.patience = Duration::from_millis(300);
    assert_eq!(udp.ask(&request(1)).await.unwrap_err(), Failure::Timeout);
    for _ in 0..SENDS_PER_QUESTION {
        server.question().await;
    }
    drop(server);
    let refused = udp.ask(&request(1)).await.unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
    let pending =
        udp.sockets().iter().flatten().map(|socket| socket.pending.lock().by_number.len()).sum::<usize>();
    assert_eq!(pending, 0, "nothing waits for ever");
}

#[tokio::test]
async fn no_port_is_used_for_long() {
    let (_server, udp) = Server::start().await;
    let one = Socket::open(udp.address, Arc::clone(&udp.heard)).await.unwrap();
    assert!(one.is_fresh());
    one.pending.lock().asked = QUESTIONS_PER_PORT;
    assert!(!one.is_fresh(), "it has asked enough");
    let mut other = Socket::open(udp.address, Arc::clone(&udp.heard)).await.unwrap();
    assert!(other.until <= Instant::now() + PORT_LIFE);
    other.until = Instant::now();
    assert!(!other.is_fresh(), "it is old");
}
