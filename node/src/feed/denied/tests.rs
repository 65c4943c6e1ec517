use super::*;

const NOW: u64 = 1_000_000;

fn flow(source: u32, destination: u32, last_ms: u64) -> DeniedFlow {
    let address = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(number));
    DeniedFlow {
        source: address(source),
        destination: address(destination),
        protocol: 6,
        port: 443,
        packets: 2,
        first_ms: last_ms.saturating_sub(10),
        last_ms,
    }
}

fn query(limit: usize) -> DeniedQuery {
    DeniedQuery { limit, ..DeniedQuery::default() }
}

fn lasts(page: &DeniedPage) -> Vec<u64> {
    page.rows.iter().map(|row| row.last_ms).collect()
}

#[test]
fn reports_of_the_same_are_one_row_with_its_first_and_last_time() {
    let log = DeniedLog::default();
    log.add("gw-1", &[flow(1, 2, 100), flow(1, 3, 50)], NOW);
    log.add("gw-1", &[flow(1, 2, 300)], NOW);
    log.add("gw-2", &[flow(1, 2, 200)], NOW);
    let page = log.page(&query(10));
    let said: Vec<_> = page
        .rows
        .iter()
        .map(|row| (row.key.gateway.as_str(), row.packets, row.first_ms, row.last_ms))
        .collect();
    assert_eq!(said, [("gw-1", 4, 90, 300), ("gw-2", 2, 190, 200), ("gw-1", 2, 40, 50)]);
    assert!(!page.more);
}

#[test]
fn a_question_finds_by_gateway_source_destination_and_time() {
    let log = DeniedLog::default();
    log.add("gw-1", &[flow(0x0a00_0001, 0x0808_0808, 100), flow(0x0a00_0102, 0x0909_0909, 200)], NOW);
    log.add("gw-2", &[flow(0x0a00_0001, 0x0808_0808, 300)], NOW);
    let found = |query: DeniedQuery| lasts(&log.page(&query));
    assert_eq!(found(DeniedQuery { gateway: Some("gw-1".into()), ..query(9) }), [200, 100]);
    assert_eq!(found(DeniedQuery { source: Some("10.0.1.0/24".parse().unwrap()), ..query(9) }), [200]);
    let destinations = Some(vec!["1.1.1.1/32".parse().unwrap(), "8.0.0.0/8".parse().unwrap()]);
    assert_eq!(found(DeniedQuery { destinations, ..query(9) }), [300, 100]);
    assert_eq!(found(DeniedQuery { destinations: Some(Vec::new()), ..query(9) }), Vec::<u64>::new());
    assert_eq!(found(DeniedQuery { since_ms: 200, ..query(9) }), [300, 200]);
}

#[test]
fn a_clock_that_is_ahead_does_not_put_its_rows_in_front_for_ever() {
    let log = DeniedLog::default();
    log.add("gw-1", &[flow(1, 2, NOW * 10)], NOW);
    log.add("gw-2", &[flow(1, 2, NOW + 5)], NOW + 5);
    let page = log.page(&query(10));
    assert_eq!(lasts(&page), [NOW + 5, NOW]);
    assert!(page.rows.iter().all(|row| row.first_ms <= row.last_ms));
}

#[test]
fn a_source_that_scans_pushes_out_its_own_rows_and_not_those_of_others() {
    let log = DeniedLog::default();
    log.add("gw-1", &[flow(7, 7, 1)], NOW);
    let many = u32::try_from(MAX_DENIED_ROWS).unwrap() + 100;
    for destination in 0..many {
        log.add("gw-1", &[flow(1, destination, 100 + u64::from(destination))], NOW);
    }
    let source = |number: u32| Some(IpNet::from(IpAddr::from(std::net::Ipv4Addr::from(number))));
    assert_eq!(log.page(&DeniedQuery { source: source(7), ..query(9) }).rows.len(), 1);
    let kept = log.lock();
    assert_eq!(kept.rows, MAX_DENIED_ROWS);
    let scanned = &kept.groups[&(Arc::from("gw-1"), IpAddr::from([0, 0, 0, 1]))];
    assert_eq!((scanned.rows.len(), scanned.heard.len()), (MAX_DENIED_ROWS - 1, MAX_DENIED_ROWS - 1));
    assert!(scanned.rows.values().all(|row| row.last_ms > 200), "its oldest went");
    assert_eq!(kept.sizes.len(), 2);
}

#[test]
fn pages_follow_each_other_to_the_end() {
    let log = DeniedLog::default();
    let flows: Vec<_> = (0..25).map(|number| flow(1, number, 500)).collect();
    log.add("gw-1,x", &flows, NOW);
    let mut behind = None;
    let mut seen = Vec::new();
    loop {
        let page = log.page(&DeniedQuery { behind, ..query(10) });
        seen.extend(page.rows.iter().map(|row| row.key.clone()));
        let place = page.rows.last().unwrap().place();
        assert_eq!(place.to_string().parse(), Ok(place.clone()));
        if !page.more {
            break;
        }
        behind = Some(place);
    }
    assert_eq!(seen.len(), 25);
    assert!(seen.is_sorted());
    assert_eq!("1,2".parse::<DeniedPlace>(), Err(NoPlace));
}

#[test]
fn answers_of_several_nodes_are_one_page_that_leaves_nothing_out() {
    let (one, two) = (DeniedLog::default(), DeniedLog::default());
    for number in 0..30 {
        one.add("gw-1", &[flow(1, number, 1_000 + u64::from(number) * 2)], NOW);
        two.add("gw-2", &[flow(1, number, 1_001 + u64::from(number) * 2)], NOW);
    }
    // The same gateway told both of one flow.
    one.add("gw-3", &[flow(9, 9, 5_000)], NOW);
    two.add("gw-3", &[flow(9, 9, 5_001)], NOW);
    let ask = |behind: Option<DeniedPlace>| {
        let query = DeniedQuery { behind, ..query(7) };
        DeniedPage::joined([one.page(&query), two.page(&query)], 7)
    };
    let first = ask(None);
    assert_eq!((first.rows[0].packets, first.rows[0].last_ms, first.rows.len()), (4, 5_001, 7));
    let mut seen = lasts(&first);
    let mut page = first;
    while page.more {
        page = ask(page.rows.last().map(DeniedRow::place));
        seen.extend(lasts(&page));
    }
    let mut all: Vec<u64> = (1_000..1_060).rev().collect();
    all.insert(0, 5_001);
    assert_eq!(seen, all);
}
