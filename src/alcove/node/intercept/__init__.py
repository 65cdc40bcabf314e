"""The interceptor: a daemon that ends TLS for domains with rules, outside sandboxes (RFD 19).

All of TLS and HTTP is mitmproxy's; here is who may be spoken to, and what is put into requests.
"""
