import os, subprocess, threading, pytest
@pytest.fixture(scope="module")
def pool():
    p = subprocess.Popen(["sleep","100"], stdin=subprocess.PIPE); yield p; p.kill(); p.wait(); p.stdin.close()
@pytest.fixture(scope="module")
def bad():
    p = subprocess.Popen(["sleep","7"]); yield p; 
def test_shared(pool): pass
def test_fd(): os.open("/dev/null", 0)
def test_thread(): threading.Thread(target=threading.Event().wait, daemon=True).start()
def test_replaced(pool):
    pass
def test_proc(): subprocess.Popen(["sleep","8"])
def test_ending(): subprocess.Popen(["sleep","0.5"])
def test_bad_mod(bad): pass
@pytest.mark.needs("chromium","nosuch")
def test_x(): pass
@pytest.mark.gpu
def test_g(): pass
@pytest.mark.slow
def test_s(): pass
