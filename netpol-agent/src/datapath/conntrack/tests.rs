use super::super::nfnetlink::answers;
use super::*;

/// A message of the kernel: one entry.
fn entry(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(Head { kind: 1 << 8, flags: 2, sequence: 1, family: 2, resource: 0 }, fill);
    writer.finish()
}

fn tuple_into(writer: &mut Writer, kind: u16, (source, destination): ([u8; 4], [u8; 4]), ports: [u16; 2]) {
    writer.nested(kind, |tuple| {
        tuple.nested(1, |ip| {
            ip.bytes(1, &source);
            ip.bytes(2, &destination);
        });
        tuple.nested(2, |proto| {
            proto.bytes(1, &[6]);
            proto.bytes(2, &ports[0].to_be_bytes());
            proto.bytes(3, &ports[1].to_be_bytes());
        });
    });
}

const POD: [u8; 4] = [10, 244, 1, 5];
const SERVICE: [u8; 4] = [10, 96, 0, 10];
const BACKEND: [u8; 4] = [10, 244, 2, 9];

fn connection_to_a_service() -> Vec<u8> {
    entry(|writer| {
        // What nobody knows yet.
        writer.bytes(99, &[1, 2, 3]);
        tuple_into(writer, 1, (POD, SERVICE), [4000, 80]);
        tuple_into(writer, 2, (BACKEND, POD), [8080, 4000]);
        writer.number(3, 0x2 | 0x8 | 0x20);
        writer.nested(4, |info| info.nested(1, |tcp| tcp.bytes(1, &[3])));
        writer.number(7, 3600);
        writer.bytes(18, &7_u16.to_be_bytes());
    })
}

fn taken(datagram: &[u8]) -> (Listed, bool) {
    let mut listed = Listed { complete: true, ..Listed::default() };
    let last = take(datagram, &|_: &Connection| true, &mut listed).unwrap();
    (listed, last)
}

#[test]
fn an_entry_is_read_with_both_of_its_directions() {
    let (listed, last) = taken(&connection_to_a_service());
    let tuple = |source: [u8; 4], destination: [u8; 4], ports: [u16; 2]| Tuple {
        source: source.into(),
        destination: destination.into(),
        source_port: ports[0],
        destination_port: ports[1],
    };
    let wanted = Connection {
        protocol: 6,
        original: tuple(POD, SERVICE, [4000, 80]),
        reply: tuple(BACKEND, POD, [8080, 4000]),
        tcp: Some(TcpState::Established),
        echo: None,
        answered: true,
        zone: 7,
        timeout: 3600,
    };
    assert_eq!((listed.connections.as_slice(), listed.unreadable, last), (&[wanted][..], 0, false));
}

#[test]
fn an_entry_that_is_cut_short_is_left_out_and_counted() {
    let whole = connection_to_a_service();
    let mut counted = 0;
    for length in 0..whole.len() {
        // As long as the kernel said, and less in it.
        let mut short = whole[..length].to_vec();
        if let Some(said) = short.get_mut(..4) {
            said.copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
        }
        let (listed, _) = taken(&short);
        for found in &listed.connections {
            assert_eq!(found.original.source, IpAddr::from(POD), "{length}");
        }
        counted += listed.unreadable;
    }
    assert!(counted > 0);
    assert_eq!(taken(&whole[..whole.len() - 1]).0.connections.len(), 0, "less than the kernel said");
}

#[test]
fn an_interrupted_list_is_not_whole_and_an_error_at_its_end_is_one() {
    let mut interrupted = connection_to_a_service();
    interrupted[6] |= 0x10;
    let (listed, _) = taken(&interrupted);
    assert!(!listed.complete && listed.connections.len() == 1);
    let done = |error: i32| {
        let mut writer = Writer::default();
        writer.message(Head { kind: 3, flags: 0, sequence: 1, family: 0, resource: 0 }, |_| {});
        let mut bytes = writer.finish();
        bytes[16..20].copy_from_slice(&error.to_ne_bytes());
        bytes
    };
    assert!(taken(&done(0)).1);
    let mut listed = Listed::default();
    let failed = take(&done(-libc::ENOBUFS), &|_: &Connection| true, &mut listed);
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
    assert_eq!(answers(&done(0)).count(), 1);
}

#[test]
fn states_of_tcp() {
    let state = |number: u8| {
        let bytes = entry(|writer| {
            tuple_into(writer, 1, (POD, BACKEND), [1, 2]);
            tuple_into(writer, 2, (BACKEND, POD), [2, 1]);
            writer.nested(4, |info| info.nested(1, |tcp| tcp.bytes(1, &[number])));
        });
        taken(&bytes).0.connections[0].tcp
    };
    use TcpState::{Established, Over, SynReceived, SynSent};
    let all = [SynSent, SynReceived, Established, Established, Established, Over, Over, Over, SynSent];
    assert_eq!((1..=9).map(state).collect::<Vec<_>>(), all.map(Some));
}
