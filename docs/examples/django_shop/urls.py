"""The site's pages."""

from django.contrib import admin
from django.contrib.auth.views import LoginView
from django.urls import path

from django_shop.shop import views

urlpatterns = [
    path("", views.products, name="products"),
    path("products/<int:pk>/", views.product, name="product"),
    path("login/", LoginView.as_view(template_name="shop/login.html"), name="login"),
    path("admin/", admin.site.urls),
]
