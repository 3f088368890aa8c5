use super::*;

fn name(text: &str) -> Name {
    Name::try_from(text.to_owned()).unwrap()
}

#[test]
fn a_name_is_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("run");
    let lock = Lock::take(&place, &name("a")).unwrap();
    assert!(Lock::is_taken(&place, &name("a")) && !Lock::is_taken(&place, &name("b")));
    let error = Lock::take(&place, &name("a")).unwrap_err().to_string();
    assert_eq!(error, format!("a is already running (process {})", std::process::id()));
    let _other = Lock::take(&place, &name("b")).unwrap();
    drop(lock);
    assert!(!Lock::is_taken(&place, &name("a")) && !place.join("a.lock").exists());
    drop(Lock::take(&place, &name("a")).unwrap());
}

#[test]
fn a_running_gateway_is_found_by_its_profile() {
    let directory = tempfile::tempdir().unwrap();
    let profile = directory.path().join("a.profile");
    let link = directory.path().join("link");
    std::fs::write(&profile, "no profile any more").unwrap();
    std::os::unix::fs::symlink(&profile, &link).unwrap();
    let mut lock = Lock::take(directory.path(), &name("a")).unwrap();
    assert_eq!(Lock::running_with(directory.path(), &profile), None);
    lock.set_profile(&link).unwrap();
    for path in [&profile, &link] {
        assert_eq!(Lock::running_with(directory.path(), path), Some(name("a")));
    }
    let error = Lock::take(directory.path(), &name("a")).unwrap_err().to_string();
    assert_eq!(error, format!("a is already running (process {})", std::process::id()));
    // With two, nobody can tell which one is meant.
    let mut second = Lock::take(directory.path(), &name("b")).unwrap();
    second.set_profile(&profile).unwrap();
    assert_eq!(Lock::running_with(directory.path(), &profile), None);
    drop(lock);
    assert_eq!(Lock::running_with(directory.path(), &profile), Some(name("b")));
    std::fs::write(directory.path().join("dead.lock"), format!("1\n{}", profile.display())).unwrap();
    assert_eq!(Lock::running_with(directory.path(), &profile), Some(name("b")));
}

#[test]
fn a_dead_ones_lock_file_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.lock"), "123456789\n").unwrap();
    assert!(!Lock::is_taken(directory.path(), &name("a")));
    let _lock = Lock::take(directory.path(), &name("a")).unwrap();
    let text = std::fs::read_to_string(directory.path().join("a.lock")).unwrap();
    assert_eq!(text, format!("{}\n", std::process::id()));
}

#[test]
fn a_lock_is_waited_for_while_its_owner_is_taken_down() {
    let directory = tempfile::tempdir().unwrap();
    let first = Lock::take(directory.path(), &name("a")).unwrap();
    let dying = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(first);
    });
    let _second = Lock::take(directory.path(), &name("a")).unwrap();
    dying.join().unwrap();
}

#[test]
fn many_contenders_never_share_a_lock() {
    let directory = tempfile::tempdir().unwrap();
    let owners = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    if let Ok(lock) = Lock::take(directory.path(), &name("a")) {
                        assert_eq!(owners.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        owners.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(lock);
                    }
                }
            });
        }
    });
}

#[tokio::test]
async fn commands_reach_the_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let mut service = serve_in(directory.path(), &name("a")).unwrap();
    let place = directory.path().to_owned();
    let client = tokio::task::spawn_blocking(move || {
        let status = ask(&place, &name("a"), Command::Status);
        let netcheck = ask(&place, &name("a"), Command::Netcheck);
        (status, netcheck, ask(&place, &name("a"), Command::Stop))
    });
    let status = crate::status::sample();
    match service.requests.recv().await.unwrap() {
        Request::Status { reply } => reply.send(status.clone()).unwrap(),
        _ => panic!("status first"),
    }
    let report = Report::new(crate::netcheck::Parts { local_port: 47100, ..Default::default() });
    match service.requests.recv().await.unwrap() {
        Request::Netcheck { reply } => reply.send(report.clone()).unwrap(),
        _ => panic!("netcheck next"),
    }
    match service.requests.recv().await.unwrap() {
        Request::Stop { release: false, reply } => reply.send(()).unwrap(),
        _ => panic!("stop at last"),
    }
    let (answer, netcheck, stopping) = client.await.unwrap();
    assert!(matches!(netcheck.unwrap(), Answer::Netcheck(answer) if *answer == report));
    assert!(matches!(answer.unwrap(), Answer::Status(answer) if *answer == status));
    assert!(matches!(stopping.unwrap(), Answer::Stopping));
}

#[tokio::test]
async fn a_gateway_that_stops_at_once_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut service = serve_in(directory.path(), &name("a")).unwrap();
    let place = directory.path().to_owned();
    let client = tokio::task::spawn_blocking(move || ask(&place, &name("a"), Command::Stop));
    let request = service.requests.recv().await;
    drop((request, service));
    assert!(matches!(client.await.unwrap(), Err(AskError::Gone)));
    let place = directory.path().to_owned();
    assert!(matches!(ask(&place, &name("a"), Command::Stop), Err(AskError::NotRunning)));
}

#[tokio::test]
async fn nonsense_gets_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let _service = serve_in(directory.path(), &name("a")).unwrap();
    let path = directory.path().join("a.sock");
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.write_all(b"{\"Dance\": 1}\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(answer.await.unwrap(), "{\"Error\":\"this gateway does not know that command\"}\n");
}
