"""The load generator: payloads and loads -> senders -> windows -> measurements -> reports.

Data flows down this list:

    payloads      images or made ones -> requests, and the answers that are expected
    loads         when requests are to be sent: callers, rates, steps, bursts, a replay
    sender        a process that sends them and records what comes back, window by window
    windows       what was recorded: counts and histograms, which merge
    measure       senders at work until the windows agree -> a Measurement, and its verdict
    scenarios     MLPerf's SingleStream, Server and Offline
    server_side   what the server's own metrics say of the same time
    machine       what it was measured on
    report        a table, JSON, CSV; plots has the pictures
    compare       two reports -> ratios with intervals, and whether one is a regression
    traffic       what callers got in some time, by the servers' metrics
    canary        two servers' metrics and answers -> promote, hold or roll back
    intervals     of shares
    setting       what is tuned of a server, as flags and configuration files
    tune          servers with one setting after another -> the best one; tune_report has the text
    batching      which requests make a batch: TensorFlow Serving's batching file
    queueing      arrivals, a batching queue, cores that are shared: a replica, simulated
    plan          a report -> how many replicas a rate takes, by simulation
"""
