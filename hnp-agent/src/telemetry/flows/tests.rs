use super::*;
use crate::telemetry::line::tests::record;

fn all() -> Wanted {
    Wanted { live: true, recent: true, pod: None, route: None, client: None, reason: None, limit: 100 }
}

fn of(flow_id: u64, reason: Reason) -> AccessRecord {
    AccessRecord { flow_id, reason, ..record() }
}

fn ids(rows: &[Value]) -> Vec<u64> {
    rows.iter().filter_map(|row| row["flow"].as_u64()).collect()
}

#[test]
fn a_connection_waits_is_busy_and_is_over() {
    let seen = Seen::new(1);
    let base = of(7, Reason::Internal);
    let connection = seen.connected(&base);
    let look = || find([&seen].into_iter(), &all());
    let found = look();
    assert_eq!((ids(&found.live), &found.live[0]["state"]), (vec![7], &json!("waiting")), "{found:?}");
    assert!(found.live[0]["pod_uid"] == "x" && found.live[0]["route"].is_null(), "{found:?}");

    let mut request = of(7, Reason::Internal);
    let upstream = request.upstream.take();
    let place = seen.shown(None, &request);
    let row = look().live[0].clone();
    assert_eq!(
        (&row["state"], &row["route"], &row["method"]),
        (&json!("busy"), &json!("manager"), &json!("GET"))
    );
    assert!(row["age_ms"].is_u64() && row["since"].is_string() && row["upstream"].is_null(), "{row}");
    for field in NOT_YET {
        assert!(row[field].is_null(), "{field} is not known yet: {row}");
    }
    request.upstream = upstream;
    seen.shown(Some(place), &request);
    assert!(look().live[0]["upstream"].is_string());

    seen.ended(Some(place), Some(request));
    seen.disconnected(connection);
    let found = look();
    assert_eq!((found.live.len(), ids(&found.recent)), (0, vec![7]));
    assert!(found.recent[0]["duration_ms"].is_number() && found.recent[0]["ts"].is_string(), "{found:?}");
}

#[test]
fn filters_find_their_own_and_nobody_elses() {
    let workers = [Seen::new(2), Seen::new(2)];
    for (number, worker) in workers.iter().enumerate() {
        let mut one = of(number as u64, [Reason::Ok, Reason::UpstreamRefused][number]);
        one.workload = Arc::new(Workload { pod_uid: Some(format!("pod-{number}")), ..Workload::default() });
        one.route = Some(format!("route-{number}").into());
        worker.shown(None, &one);
        worker.ended(None, Some(one));
    }
    let look = |wanted: Wanted| {
        let found = find(workers.iter(), &wanted);
        (ids(&found.live), ids(&found.recent))
    };
    assert_eq!(look(Wanted { pod: Some("pod-1".into()), ..all() }), (vec![1], vec![1]));
    assert_eq!(look(Wanted { pod: Some("pod-".into()), ..all() }).0.len(), 2);
    assert_eq!(look(Wanted { pod: Some("nobody".into()), ..all() }), (vec![], vec![]));
    assert_eq!(look(Wanted { route: Some("route-0".into()), ..all() }), (vec![0], vec![0]));
    let client = record().client;
    assert_eq!(look(Wanted { client: Some(client.to_string()), ..all() }).0.len(), 2);
    assert_eq!(look(Wanted { client: Some(client.ip().to_string()), ..all() }).1.len(), 2);
    assert_eq!(look(Wanted { client: Some("192.0.2.77".into()), ..all() }), (vec![], vec![]));
    assert_eq!(look(Wanted { reason: Some(Reason::UpstreamRefused), ..all() }), (vec![], vec![1]));
    assert_eq!(look(Wanted { live: false, limit: 1, ..all() }).1.len(), 1);
    assert_eq!(look(Wanted { recent: false, ..all() }).1, Vec::<u64>::new());
    let found = find(workers.iter(), &Wanted { limit: 1, ..all() });
    assert_eq!((found.live_matching, found.recent_matching), (2, 2));
}

#[test]
fn what_is_kept_is_bounded_in_number_and_in_size() {
    let seen = Seen::new(2);
    for number in 0..5000 {
        let mut long = of(number, Reason::Ok);
        long.http = Some(HttpRecord { method: "GET".into(), path: "/é".repeat(20_000), status: 200 });
        long.detail = Some("d".repeat(20_000));
        let place = seen.shown(None, &long);
        seen.ended(Some(place), Some(long));
    }
    let found = find([&seen].into_iter(), &Wanted { limit: 10_000, ..all() });
    assert_eq!(found.recent_matching, RECENT / 2);
    // The latest are the ones that stay.
    assert_eq!(ids(&found.recent).iter().max(), Some(&4999));
    for row in &found.recent {
        let length = |field: &str| row[field].as_str().unwrap_or_default().len();
        assert!(length("path") <= TEXT_BYTES + 3 && length("detail") <= TEXT_BYTES + 3, "{row}");
    }
}

#[test]
fn a_wave_of_connections_gives_back_what_it_took() {
    let seen = Seen::new(1);
    let base = of(1, Reason::Internal);
    let places: Vec<Place> = (0..5000).map(|_| seen.connected(&base)).collect();
    assert_eq!(seen.lock().connections.rows.len(), 5000);
    places.into_iter().for_each(|place| seen.disconnected(place));
    assert_eq!(seen.lock().connections.rows.capacity(), 0);
    // Places are used again.
    let (first, second) = (seen.connected(&base), seen.connected(&base));
    seen.disconnected(first);
    assert_eq!((seen.connected(&base), second), (first, 1));
}

#[test]
fn no_query_string_and_no_control_character_gets_out() {
    let seen = Seen::new(1);
    let mut one = of(1, Reason::Ok);
    one.http = Some(HttpRecord { method: "GET".into(), path: "/a\u{1b}[2J?key=SECRET".into(), status: 200 });
    seen.shown(None, &one);
    seen.ended(None, Some(one));
    let found = find([&seen].into_iter(), &all());
    let text = format!("{:?}{:?}", found.live, found.recent);
    assert!(!text.contains("SECRET") && found.live.len() == 1 && found.recent.len() == 1, "{text}");
}
